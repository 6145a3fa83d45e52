"""``hosts.toml``, one per registry (containerd, docs/hosts.md), for containerd, Docker and k3s."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from mirror.config.fields import masked
from mirror.doctor.files import Tree, UnusableFileError, strings, table
from mirror.doctor.report import Finding, Inspection, Probe, Trust, Way, note, ok, wrong
from mirror.doctor.target import Likeness, MirrorAddress
from mirror.oci.image_name import HUB, HUB_HOSTS

_VERSION_SECONDS: Final = 5
_NUMBERS: Final = re.compile(r"\bv?(\d+)\.(\d+)")
#: Per client: the last version that rejects a file with the word, the first that needs it.
_REJECTS: Final = {"containerd": (2, 1), "Docker": (28, 999)}
_NEEDS: Final = {"containerd": (2, 2), "Docker": (29, 1)}


def containerd_version() -> str:
    """Return what the containerd of this machine says about itself; empty if there is none."""
    program = shutil.which("containerd")
    if program is None:
        return ""
    try:
        said = subprocess.run(  # noqa: S603  # a program of this machine
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return said.stdout


def knows_referrers(client: str, version: str) -> bool | None:
    """Whether a client needs the capability ``referrers`` (True) or rejects it (False).

    None if this is unknown.
    """
    numbers = _NUMBERS.search(version)
    if numbers is None or client not in _NEEDS:
        return None
    found = int(numbers[1]), int(numbers[2])
    if found >= _NEEDS[client]:
        return True
    return False if found <= _REJECTS[client] else None


_MISTAKEN: Final = (*HUB_HOSTS, "hub.docker.com")
_NEEDED: Final = ("pull", "resolve")
_REFERRERS: Final = "referrers"


def inspect(
    tree: Tree, directory: str, target: MirrorAddress, client: str, version: str = ""
) -> Inspection:
    """Inspect every ``hosts.toml`` below ``directory``.

    ``version`` is that of the client, empty if it is unknown.
    """
    inspection = Inspection()
    for name in tree.names(directory):
        if name.endswith(".toml"):
            what = f"lies in {directory} itself, where no client reads it"
            fix = f"move it to {directory}/REGISTRY/hosts.toml, such as {directory}/{HUB}"
            inspection.findings.append(wrong(f"{directory}/{name}", what, fix))
            continue
        for file in tree.names(f"{directory}/{name}"):
            path = f"{directory}/{name}/{file}"
            if file == "hosts.toml":
                inspection.take(_File(tree, path, name, target, client, version).inspect())
            elif file.endswith(".toml"):
                fix = f"rename it to {directory}/{name}/hosts.toml"
                inspection.findings.append(wrong(path, "is not read under this name", fix))
    return inspection


def named(tree: Tree, directory: str) -> list[str]:
    """Return the addresses in the files below ``directory``."""
    found: list[str] = []
    for name in tree.names(directory):
        try:
            found += table(tree.toml(f"{directory}/{name}/hosts.toml"), "host")
        except UnusableFileError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class _File:
    tree: Tree
    path: str
    registry: str
    target: MirrorAddress
    client: str
    version: str

    def inspect(self) -> Inspection:
        try:
            file = table(self.tree.toml(self.path))
        except UnusableFileError as error:
            fix = f"fix it; until then {self.client} asks {self.registry} itself"
            return Inspection([wrong(self.path, str(error), fix)])
        hosts, server = table(file, "host"), file.get("server")
        # The server is the host that is asked last; its settings are those of the file itself.
        asked = {**hosts, server: file} if isinstance(server, str) else hosts
        for url, settings in asked.items():
            if self._is_mirror(url, table(settings)):
                return self._pointed(url, table(settings))
            if self.target.likeness(url) is Likeness.SAME:
                what = f"has {url} with override_path, which leaves /v2 out of the requests"
                fix = f'override_path = false below [host."{self.target.url}"]'
                return Inspection([wrong(self.path, what, fix)])
        return Inspection([self._miss(list(hosts))])

    @property
    def _named(self) -> str:
        """The registry; "host_5000_" means host:5000 on systems without colons in file names."""
        return self.registry.replace("_", ":", 1).removesuffix("_")

    def _is_mirror(self, url: str, settings: dict[str, Any]) -> bool:
        """Whether requests to a host reach the API of the mirror, or its part for the registry."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        path = parts.path.rstrip("/")
        if settings.get("override_path") is not True and not path.endswith("/v2"):
            path += "/v2"
        if path not in {"/v2", f"/v2/{self._named}", f"/{self._named}/v2"}:
            return False
        return self.target.likeness(parts._replace(path="").geturl()) is Likeness.SAME

    def _pointed(self, url: str, settings: dict[str, Any]) -> Inspection:
        found = [*self._incapable(settings), *self._authorities(settings)]
        if self.registry in _MISTAKEN:
            what = f"is for images named {self.registry}/..., and those of Docker Hub are {HUB}/..."
            found.insert(0, wrong(self.path, what, f"rename its directory to {HUB}"))
        if found:
            return Inspection(found)
        registry = HUB if self.registry == "_default" else self._named
        probe = Probe(self.client, registry, Way.NAMESPACE, self._trust(settings))
        found = [ok(self.path, f"{self.registry} comes from {url}"), *self._referrers(settings)]
        return Inspection(found, [probe], {registry})

    def _miss(self, urls: list[str]) -> Finding:
        fix = f'[host."{self.target.url}"] in it'
        for url in urls:
            if (reason := self.target.difference(url)) is not None:
                return wrong(self.path, f"has {masked(url)}, {reason}", fix)
        others = f" but {masked(', '.join(urls))}" if urls else ""
        what = f"does not name {self.target.url}{others}"
        # The file of a private registry may have nothing to do with the mirror.
        if self.registry not in {HUB, "_default"}:
            return note(self.path, what, fix)
        return wrong(self.path, what, fix)

    def _incapable(self, settings: dict[str, Any]) -> list[Finding]:
        capabilities = strings(settings.get("capabilities")) or list(_NEEDED)
        fix = 'capabilities = ["pull", "resolve"]'
        lacking = [name for name in _NEEDED if name not in capabilities]
        if lacking:
            what = f"capabilities lacks {', '.join(lacking)}, so {self.client} asks upstream"
            return [wrong(self.path, f"{what} instead", fix)]
        knows = knows_referrers(self.client, self.version)
        if knows is False and _REFERRERS in capabilities:
            what = f"capabilities has {_REFERRERS}, and this {self.client} rejects such a file"
            return [wrong(self.path, what, fix)]
        return []

    def _referrers(self, settings: dict[str, Any]) -> list[Finding]:
        capabilities = strings(settings.get("capabilities"))  # none: all that the client knows
        knows = knows_referrers(self.client, self.version)
        if not (knows and capabilities) or _REFERRERS in capabilities:
            return []
        what = (
            f"capabilities lacks {_REFERRERS}, so {self.client} asks {self.registry} itself for "
            "signatures and attestations"
        )
        fix = f'capabilities = ["pull", "resolve", "{_REFERRERS}"]'
        return [note(self.path, what, fix)]

    def _authorities(self, settings: dict[str, Any]) -> list[Finding]:
        gone = [file for file in _ca_files(settings, self.path) if not self.tree.exists(file)]
        fix = f"put the CA of the mirror there; until then every pull of {self.registry} fails"
        return [wrong(self.path, f"names the CA {file}, which is not there", fix) for file in gone]

    def _trust(self, settings: dict[str, Any]) -> Trust:
        files = tuple(str(self.tree.at(file)) for file in _ca_files(settings, self.path))
        return Trust(
            files,
            insecure=settings.get("skip_verify") is True,
            fix=f'ca = "FILE" below [host."{self.target.url}"] in hosts.toml',
        )


def _ca_files(settings: dict[str, Any], path: str) -> list[str]:
    value = settings.get("ca")
    files = [value] if isinstance(value, str) else strings(value)
    directory = path.rpartition("/")[0]
    return [file if file.startswith("/") else f"{directory}/{file}" for file in files]
