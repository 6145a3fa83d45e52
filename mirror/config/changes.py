"""The changes after a reload of the configuration, and those of them that need a restart."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from mirror.config.cluster import ClusterConfig
from mirror.config.dump import rendered
from mirror.config.mistakes import spelt
from mirror.config.model import Config

Place = tuple[str, ...]

#: The keys of [cluster] that a reload changes.
_RELOADED: Final = frozenset(
    {
        "credentials_file",
        "first_byte_timeout",
        "max_size",
        "peers",
        "redirect_endpoint",
        "redirect_networks",
        "secret_file",
    }
)
#: Keys that are read only at the start: sockets, processes, directories, tracing, servers.
FIXED: Final = frozenset(
    {
        ("server", "listen"),
        ("server", "metrics_listen"),
        ("server", "socket_mode"),
        ("server", "workers"),
        ("cache", "directory"),
        ("proxy", "listen"),
        ("proxy", "ca_directory"),
        ("tracing", "endpoint"),
        ("tracing", "sample"),
        ("tracing", "service"),
        *(("cluster", key) for key in ClusterConfig.model_fields.keys() - _RELOADED),
    }
)
_TLS: Final = frozenset({("server", "tls_certificate"), ("server", "tls_key")})
_CLUSTER: Final = frozenset(("cluster", key) for key in ClusterConfig.model_fields)


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a key or of an upstream; ``waits``: it needs a restart."""

    text: str
    waits: bool

    def __str__(self) -> str:
        return f"{self.text} (waits for a restart)" if self.waits else self.text


def in_force(running: Config, read: Config) -> Config:
    """Return ``read`` with the values of ``running`` for all keys that need a restart."""
    updates: dict[str, dict[str, Any]] = {}
    for section, key in _waiting(running, read):
        updates.setdefault(section, {})[key] = getattr(getattr(running, section), key)
    tables = {
        section: getattr(read, section).model_copy(update=update)
        for section, update in updates.items()
    }
    return read.model_copy(update=tables)


def changes(running: Config, read: Config) -> list[Change]:
    """Return all differences, with masked secrets, in the order of the file."""
    before, after = dict(_keys(running)), dict(_keys(read))
    waiting = _waiting(running, read)
    return [
        Change(text, place in waiting)
        for place in {**before, **after}
        if (text := _told(place, before, after))
    ]


def _waiting(running: Config, read: Config) -> frozenset[Place]:
    # TLS on a socket can be switched on or off only by a restart; certificates are reloaded.
    toggled = bool(running.server.tls_certificate) != bool(read.server.tls_certificate)
    waiting = FIXED | _TLS if toggled else FIXED
    return waiting if _same_servers(running.cluster, read.cluster) else waiting | _CLUSTER


def _same_servers(running: ClusterConfig, read: ClusterConfig) -> bool:
    """Whether a reload can change the other keys of [cluster], which belong to these servers."""
    fixed = ClusterConfig.model_fields.keys() - _RELOADED
    secret = bool(running.secret_file) == bool(read.secret_file)
    return secret and all(getattr(running, key) == getattr(read, key) for key in fixed)


def _keys(config: Config) -> Iterator[tuple[Place, Any]]:
    """Yield every key with its value, and every upstream as a whole under the key of its table."""
    for section in type(config).model_fields:
        table = getattr(config, section)
        if isinstance(table, BaseModel):
            yield from (((section, key), value) for key, value in table.model_dump().items())
        elif isinstance(table, dict):
            for name, entry in table.items():
                yield (section, name), entry
                values = entry.model_dump().items()
                yield from (((section, name, key), value) for key, value in values)
        else:  # a list of tables
            yield (section,), config.model_dump(include={section})[section]


def _told(place: Place, before: dict[Place, Any], after: dict[Place, Any]) -> str:
    """Describe the change of a key; empty if it is unchanged or its table is reported instead."""
    if place[:2] not in before:
        return f"{spelt(place)} added: {after[place].url}" if len(place) == 2 else ""
    if place[:2] not in after:
        return f"{spelt(place)} removed" if len(place) == 2 else ""
    former, present = before[place], after[place]
    if former == present or isinstance(present, BaseModel):
        return ""
    return f"{spelt(place)} = {rendered(former)} -> {rendered(present)}"
