"""Standalone BuildKit: ``buildkitd.toml``."""

from typing import Any, Final

from mirror.doctor.files import Tree, UnusableFileError, strings, table
from mirror.doctor.report import Finding, Inspection, Probe, Trust, Way, ok, wrong
from mirror.doctor.target import MirrorAddress

_FILE: Final = "/etc/buildkit/buildkitd.toml"
_RESTART: Final = "systemctl restart buildkit"


def inspect(tree: Tree, target: MirrorAddress) -> Inspection:
    """Inspect every registry whose mirror is ``target``."""
    try:
        config = tree.toml(_FILE) or {}
    except UnusableFileError as error:
        return Inspection([wrong(_FILE, str(error), f"fix it, then {_RESTART}")])
    registries = table(config, "registry")
    inspection = Inspection()
    for name, settings in registries.items():
        for mirror in strings(table(settings).get("mirrors")):
            inspection.take(_mirror(tree, name, mirror, registries, target))
    return inspection


def _mirror(
    tree: Tree, name: str, mirror: str, registries: dict[str, Any], target: MirrorAddress
) -> Inspection:
    netloc, _, path = mirror.rpartition("://")[2].partition("/")
    if not target.is_at(netloc):
        return Inspection()
    how = table(registries, netloc)
    faults = _faults(name, mirror, path, how, target)
    if faults:
        return Inspection(faults)
    files = tuple(str(tree.at(file)) for file in strings(how.get("ca")))
    fix = f'[registry."{netloc}"] ca = ["FILE"] in {_FILE}, then {_RESTART}'
    trust = Trust(files, insecure=how.get("insecure") is True, fix=fix)
    probe = Probe("BuildKit", name, Way.PATH if path else Way.NAMESPACE, trust)
    return Inspection([ok(_FILE, f"{name} comes from {mirror}")], [probe], {name})


def _faults(
    name: str, mirror: str, path: str, how: dict[str, Any], target: MirrorAddress
) -> list[Finding]:
    found = []
    right = f"{target.netloc}/{name}"
    if "://" in mirror or path not in {"", name}:
        what = f"the mirror of {name} is {mirror}, and must be {right}"
        found.append(wrong(_FILE, what, f'mirrors = ["{right}"], then {_RESTART}'))
    # BuildKit's default for this machine is http.
    http = how.get("http", target.local)
    if http is not target.plain:
        speaks = "http" if target.plain else "https"
        what = f"the mirror of {name} is not asked by {speaks}, which is what it speaks"
        fix = f'[registry."{target.netloc}"] http = {str(target.plain).lower()}, then {_RESTART}'
        found.append(wrong(_FILE, what, fix))
    return found
