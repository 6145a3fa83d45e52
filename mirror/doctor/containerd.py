"""containerd for Kubernetes (CRI): ``config.toml`` must name the directory of ``hosts.toml``."""

from dataclasses import dataclass
from typing import Any, Final

from mirror.doctor import hosts
from mirror.doctor.files import Tree, UnusableFileError, strings, table
from mirror.doctor.report import Finding, Inspection, note, ok, wrong
from mirror.doctor.target import MirrorAddress

_FILE: Final = "/etc/containerd/config.toml"
CERTS: Final = "/etc/containerd/certs.d"
# The table with config_path in version 3, 2 and 1 of the file.
_TABLES: Final = (
    ("plugins", "io.containerd.cri.v1.images", "registry"),
    ("plugins", "io.containerd.grpc.v1.cri", "registry"),
    ("plugins", "cri", "registry"),
)
_RESTART: Final = "systemctl restart containerd"


def inspect(tree: Tree, target: MirrorAddress, version: str) -> Inspection:
    """Inspect config.toml and every hosts.toml; ``version`` is empty if it is unknown."""
    try:
        config = tree.toml(_FILE)
    except UnusableFileError as error:
        fix = f"fix it, then {_RESTART} (until then containerd does not start again)"
        return Inspection([wrong(_FILE, str(error), fix)])
    settings = _Settings.of(config or {})
    inspection = Inspection()
    for directory in dict.fromkeys([*settings.directories, CERTS]):
        found = hosts.inspect(tree, directory, target, "containerd", version)
        if found.pointed:
            inspection.findings += settings.judge(directory, given=config is not None)
        inspection.take(found)
    return inspection


@dataclass(frozen=True, slots=True)
class _Settings:
    version: int
    directories: tuple[str, ...]
    legacy: bool
    disabled: bool

    @staticmethod
    def of(config: dict[str, Any]) -> "_Settings":
        registries = [table(config, *keys) for keys in _TABLES]
        paths = [str(registry.get("config_path") or "") for registry in registries]
        version = config.get("version", 1)
        return _Settings(
            version if isinstance(version, int) else 1,
            tuple(path for path in ":".join(paths).split(":") if path),
            legacy=any(registry.get("mirrors") for registry in registries),
            disabled=any("cri" in name for name in strings(config.get("disabled_plugins"))),
        )

    def judge(self, directory: str, *, given: bool) -> list[Finding]:
        """Check that containerd reads ``directory``, in which a file names the mirror."""
        table_of = "io.containerd.cri.v1.images" if self.version >= 3 else _TABLES[1][1]
        fix = f"[plugins.\"{table_of}\".registry] config_path = '{directory}', then {_RESTART}"
        if self.disabled:
            return [note(_FILE, "CRI is disabled, so only nerdctl and ctr read hosts.toml")]
        if self.legacy and self.directories:
            what = "has registry.mirrors beside config_path, which containerd refuses"
            return [wrong(_FILE, what, f"remove registry.mirrors, then {_RESTART}")]
        if directory in self.directories:
            return [ok(_FILE, f"config_path names {directory}"), *self._several()]
        if self.directories:
            what = f"config_path is {':'.join(self.directories)}, and hosts.toml in {directory}"
            return [wrong(_FILE, what, fix)]
        if not given or self.version >= 3:
            what = "config_path is not set; only containerd 2.2 and later find hosts.toml then"
            return [note(_FILE, what, fix)]
        return [wrong(_FILE, f"config_path is not set, so {directory} is not read", fix)]

    def _several(self) -> list[Finding]:
        if self.version < 3 or len(self.directories) == 1:
            return []
        what = "config_path names several directories, and some containerd 2.x then find none"
        return [note(_FILE, what, f'config_path = "{self.directories[0]}", then {_RESTART}')]
