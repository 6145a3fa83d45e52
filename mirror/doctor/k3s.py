"""k3s and RKE2: ``registries.yaml``, and the ``hosts.toml`` that they generate at the start."""

import re
from typing import Final

from mirror.config.fields import masked
from mirror.doctor import hosts
from mirror.doctor.files import Tree, UnusableFileError
from mirror.doctor.report import Inspection, ok, wrong
from mirror.doctor.target import Likeness, MirrorAddress

_PROGRAMS: Final = ("k3s", "rke2")
_ADDRESS: Final = re.compile(r"^[^#\n]*?(https?://[^\s\"',\]}]+)", re.MULTILINE)


def inspect(tree: Tree, target: MirrorAddress) -> Inspection:
    """Inspect k3s and RKE2, if they have a ``registries.yaml``."""
    inspection = Inspection()
    for program in _PROGRAMS:
        inspection.take(_inspect(tree, target, program))
    return inspection


def named(tree: Tree) -> list[str]:
    """Return the addresses in ``registries.yaml``."""
    found: list[str] = []
    for program in _PROGRAMS:
        try:
            found += _ADDRESS.findall(tree.text(_yaml(program)) or "")
        except UnusableFileError:
            continue
    return found


def _yaml(program: str) -> str:
    return f"/etc/rancher/{program}/registries.yaml"


def _inspect(tree: Tree, target: MirrorAddress, program: str) -> Inspection:
    path = _yaml(program)
    try:
        text = tree.text(path)
    except UnusableFileError as error:
        return Inspection([wrong(path, str(error), f"make it readable for {program}")])
    if text is None:
        return Inspection()
    addresses = _ADDRESS.findall(text)
    # An address may end in /v2, or in the path below it that means one registry.
    places = [url.partition("/v2")[0] for url in addresses]
    if not any(target.likeness(place) is Likeness.SAME for place in places):
        others = f" but {masked(', '.join(addresses))}" if addresses else ""
        fix = f'mirrors: {{"docker.io": {{endpoint: ["{target.url}"]}}}}, then restart'
        return Inspection([wrong(path, f"does not name {target.url}{others}", fix)])
    # containerd reads only the files that the program generates.
    made = f"/var/lib/rancher/{program}/agent/etc/containerd/certs.d"
    inspection = hosts.inspect(tree, made, target, program)
    if inspection.pointed:
        inspection.findings.insert(0, ok(path, f"names {target.url}"))
    elif not inspection.findings:
        what = f"names {target.url}, but {program} has not read it ({made} says nothing of it)"
        fix = f"systemctl restart {program} (or the agent); then see its log for a mistake in it"
        inspection.findings.append(wrong(path, what, fix))
    return inspection
