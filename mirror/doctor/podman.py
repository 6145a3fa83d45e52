"""Podman, Buildah, Skopeo, CRI-O: ``registries.conf`` and its drop-ins."""

from dataclasses import dataclass
from typing import Any, Final

from mirror.doctor.files import Tree, UnusableFileError, tables
from mirror.doctor.report import Finding, Inspection, Probe, Trust, Way, note, ok, wrong
from mirror.doctor.target import MirrorAddress
from mirror.oci.image_name import HUB

_SYSTEM: Final = "/etc/containers"
_USER: Final = ".config/containers"
_CERTS: Final = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def inspect(tree: Tree, target: MirrorAddress) -> Inspection:
    """Inspect every table that names the mirror."""
    inspection = Inspection()
    for path in _paths(tree):
        try:
            config = tree.toml(path) or {}
        except UnusableFileError as error:
            fix = "fix it (until then Podman, Buildah, Skopeo and CRI-O refuse to work)"
            inspection.findings.append(wrong(path, str(error), fix))
            continue
        for registry in tables(config.get("registry")):
            inspection.take(_inspect(tree, path, registry, target))
    return inspection


def named(tree: Tree) -> list[str]:
    """Return the addresses of the mirrors in all files."""
    found = []
    for path in _paths(tree):
        try:
            config = tree.toml(path) or {}
        except UnusableFileError:
            continue
        for registry in tables(config.get("registry")):
            for mirror in tables(registry.get("mirror")):
                scheme = "http" if mirror.get("insecure") is True else "https"
                found.append(f"{scheme}://{str(mirror.get('location', '')).partition('/')[0]}")
    return found


def _paths(tree: Tree) -> list[str]:
    """Return all files: a user's file replaces the system's, drop-ins of both are read."""
    user = f"{tree.home}/{_USER}"
    place = user if tree.exists(f"{user}/registries.conf") else _SYSTEM
    drop_ins = [f"{at}/registries.conf.d" for at in (_SYSTEM, user)]
    found = [f"{at}/{name}" for at in drop_ins for name in tree.names(at) if name.endswith(".conf")]
    return [f"{place}/registries.conf", *found]


def _inspect(tree: Tree, path: str, registry: dict[str, Any], target: MirrorAddress) -> Inspection:
    prefix = str(registry.get("prefix") or registry.get("location") or "")
    inspection = Inspection()
    for mirror in tables(registry.get("mirror")):
        location = str(mirror.get("location", ""))
        netloc, _, way = location.partition("://")[2].partition("/")
        if "://" not in location:
            netloc, _, way = location.partition("/")
        if not target.is_at(netloc):
            continue
        rule = _Rule(path, prefix, registry, mirror, target)
        if "://" in location:
            what = f"the mirror of {prefix} is {location}, and a location has no scheme"
            inspection.findings.append(wrong(path, what, rule.fix))
        elif faults := rule.faults(way):
            inspection.findings += faults
        else:
            inspection.take(rule.pointed(tree, way))
    return inspection


@dataclass(frozen=True, slots=True)
class _Rule:
    path: str
    prefix: str
    registry: dict[str, Any]
    mirror: dict[str, Any]
    target: MirrorAddress

    @property
    def fix(self) -> str:
        return f'location = "{self.target.netloc}/{self.prefix}" in [[registry.mirror]]'

    def faults(self, way: str) -> list[Finding]:
        found: list[Finding] = []
        if self.registry.get("blocked") is True:
            found.append(wrong(self.path, f"{self.prefix} is blocked", "blocked = false"))
        if self.registry.get("mirror-by-digest-only") is True:
            found.append(self._keeps("mirror-by-digest-only", "mirror-by-digest-only = false"))
        elif self.mirror.get("pull-from-mirror", "all") not in ("all", ""):
            what = f"pull-from-mirror = {self.mirror['pull-from-mirror']}"
            found.append(self._keeps(what, 'pull-from-mirror = "all"'))
        if self.target.plain and self.mirror.get("insecure") is not True:
            what = f"the mirror of {self.prefix} is asked with TLS, and it speaks http"
            found.append(wrong(self.path, what, "insecure = true in [[registry.mirror]]"))
        if way != self.prefix and (way or self.prefix.partition("/")[0] != HUB):
            given = f"{self.target.netloc}/{way}".rstrip("/")
            what = f"the mirror of {self.prefix} is {given}, which does not say {self.prefix}"
            found.append(wrong(self.path, what, self.fix))
        return found

    def pointed(self, tree: Tree, way: str) -> Inspection:
        findings = [ok(self.path, f"{self.prefix} comes from {self.target.netloc}")]
        if not self.target.plain and self.mirror.get("insecure") is True:
            what = f"takes any certificate for the mirror of {self.prefix}"
            findings.append(note(self.path, what, "insecure = false, with the CA in certs.d"))
        registry = self.prefix.partition("/")[0].removeprefix("*.")
        probe = Probe("Podman", registry, Way.PATH if way else Way.PLAIN, self._trust(tree))
        return Inspection(findings, [probe], {registry})

    def _keeps(self, what: str, fix: str) -> Finding:
        return wrong(self.path, f"{what} keeps some pulls of {self.prefix} from the mirror", fix)

    def _trust(self, tree: Tree) -> Trust:
        places = [f"{certs}/{self.target.netloc}" for certs in _CERTS]
        files = tree.certificates(*places)
        fix = f"copy the CA of the mirror to {places[0]}/ca.crt"
        return Trust(files, insecure=self.mirror.get("insecure") is True, fix=fix)
