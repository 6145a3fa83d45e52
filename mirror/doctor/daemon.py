"""The settings of the running Docker daemon: ``GET /info`` (Docker Engine API)."""

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from mirror.doctor.files import Tree, strings, table
from mirror.upstream.sessions import read_up_to

SOCKETS: Final = ("/run/docker.sock", "/var/run/docker.sock")
_SECONDS: Final = 10
_MOST_BYTES: Final = 16 * 1024 * 1024
_CONTAINERD_STORE: Final = "io.containerd.snapshotter.v1"
_HOSTS_SINCE: Final = 28


class SilentDaemonError(Exception):
    """The daemon has a socket and does not answer; the message is the reason, one line."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """The settings of a running dockerd."""

    version: str
    mirrors: tuple[str, ...]
    insecure: tuple[str, ...]
    http_proxy: str
    https_proxy: str
    no_proxy: str
    containerd_store: bool

    @property
    def reads_hosts(self) -> bool:
        """Whether the daemon reads ``/etc/docker/certs.d/<registry>/hosts.toml``."""
        major = re.match(r"\d+", self.version)
        recent = major is not None and int(major[0]) >= _HOSTS_SINCE
        return recent and self.containerd_store

    def spares(self, host: str, netloc: str) -> bool:
        """Whether the daemon would use plain http for a registry."""
        return is_insecure(self.insecure, host, netloc)


def is_insecure(insecure: tuple[str, ...], host: str, netloc: str) -> bool:
    """Whether a list of ``insecure-registries`` (names and networks) covers a registry."""
    return netloc in insecure or any(_holds(entry, host) for entry in insecure)


def _holds(network: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except (ValueError, TypeError):
        return False


async def ask(tree: Tree) -> Daemon | None:
    """Return the daemon of this machine, None if it has none.

    Raises:
        SilentDaemonError: the daemon does not answer.
    """
    sockets = [tree.at(path) for path in SOCKETS if tree.exists(path)]
    return parsed(await _info(sockets[0])) if sockets else None


async def _info(socket: Path) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket)), timeout=timeout
            ) as session,
            session.get("http://docker/info") as response,
        ):
            return table(json.loads(await read_up_to(response.content, _MOST_BYTES)))
    except aiohttp.ClientConnectorError as error:
        raise SilentDaemonError(error.strerror or str(error)) from error
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise SilentDaemonError(str(error) or "no answer") from error


def parsed(info: dict[str, Any]) -> Daemon:
    """Parse an answer of ``/info``."""
    registries = table(info, "RegistryConfig")
    configs = table(registries, "IndexConfigs")
    insecure = [name for name, config in configs.items() if table(config).get("Secure") is False]
    status = info.get("DriverStatus")
    pairs = [strings(pair) for pair in status] if isinstance(status, list) else []
    return Daemon(
        version=str(info.get("ServerVersion", "")),
        mirrors=tuple(url.rstrip("/") for url in strings(registries.get("Mirrors"))),
        insecure=(*insecure, *strings(registries.get("InsecureRegistryCIDRs"))),
        http_proxy=str(info.get("HttpProxy") or ""),
        https_proxy=str(info.get("HttpsProxy") or ""),
        no_proxy=str(info.get("NoProxy") or ""),
        containerd_store=any(_CONTAINERD_STORE in pair for pair in pairs),
    )
