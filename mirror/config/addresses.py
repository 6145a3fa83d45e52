"""Checks names and addresses of registries and proxies, and addresses to listen at."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from mirror.oci.reference import InvalidName, parse_repository

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?", re.ASCII)

#: A path without empty parts, ``.`` and ``..``.
_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[a-zA-Z0-9._~:-]+)*", re.ASCII)


def checked_name(name: str) -> str:
    """Return the name of a registry as written before an image, ``host[:port]``.

    Raises:
        ValueError: the text is not such a name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a registry's name in lower case, such as registry.example.com:5000")
    return name


def checked_url(url: str) -> str:
    """Return the address of a mirror, without a slash at its end.

    Raises:
        ValueError: the text is not an address, or has a path, a query or credentials.
    """
    if _checked(url).path not in {"", "/"}:
        raise ValueError("an address without a path (the registry API is at the root)")
    return url.rstrip("/")


def checked_upstream(url: str) -> str:
    """Return the address of a registry, without a slash at its end.

    It may have a path before ``/v2``, below which the registry API is, for example if the upstream
    is another mirror: ``http://mirror.example.com:5000/ghcr.io`` is asked below ``/ghcr.io/v2/``.
    It may have a path after ``/v2/``, with which the names of all repositories begin there, for
    example a project of Harbor: ``https://harbor.example.com/v2/hub-proxy``.

    Raises:
        ValueError: the text is not an address, has a query or credentials, or has a path that no
            registry has.
    """
    path = _checked(url).path.rstrip("/")
    if not _PATH.fullmatch(path):
        raise ValueError("an address whose path is plain (letters, digits, . _ ~ : -)")
    parts = path.split("/")
    if "V2" in parts or (parts[-1] == "v1" and "v2" not in parts):
        raise ValueError("an address without /v1 or /V2 (the registry API is below /v2/)")
    root, prefix = split_upstream(url.rstrip("/"))
    if not prefix:
        return root
    try:
        parse_repository(prefix.rstrip("/"))
    except InvalidName as error:
        text = "a path below /v2/ that begins the name of a repository (a-z, 0-9, . _ - and /)"
        raise ValueError(text) from error
    return url.rstrip("/")


def split_upstream(url: str) -> tuple[str, str]:
    """Split the address of a registry at its API, ``/v2/``.

    Returns:
        the address before ``/v2/``, and the path below it with a slash at its end, or "".
    """
    parts = urlsplit(url)
    base, _, prefix = f"{parts.path}/".partition("/v2/")
    return f"{parts.scheme}://{parts.netloc}{base.rstrip('/')}", prefix


def _checked(url: str) -> SplitResult:
    parts = _split(url, "https://registry.example.com")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address without user and password (there are keys for them)")
    if parts.query or parts.fragment:
        raise ValueError("an address without a query")
    return parts


def checked_proxy(url: str) -> str:
    """Return the address of an HTTP proxy, user and password allowed; empty for no proxy.

    Raises:
        ValueError: the text is not such an address.
    """
    if url:
        _split(url, "http://proxy.example.com:3128")
    return url


def _split(url: str, example: str) -> SplitResult:
    mistake = f"an http or https address such as {example}"
    try:
        parts = urlsplit(url)
        reachable = bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # an invalid port or IPv6 address
        raise ValueError(mistake) from error
    if parts.scheme not in {"http", "https"} or not reachable or re.search(r"\s", url):
        raise ValueError(mistake)
    return parts


_TCP: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s/]*)):([0-9]{1,5})", re.ASCII)
_UNIX: Final = re.compile(r"unix:(/[^\x00-\x1f\x7f]+)")
_MAX_PORT: Final = 65535
_ALLOWED: Final = "HOST:PORT, such as 0.0.0.0:5000, [::]:5000 or :5000, or unix:/PATH"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (empty: all addresses of IPv4 and IPv6) and a port (0: any free port)."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_listen(text: str) -> Address:
    """Parse an address to listen at.

    Raises:
        ValueError: the text is not such an address.
    """
    unix = _UNIX.fullmatch(text)
    if unix and Path(unix[1]).name:  # the root directory has no name
        return UnixAddress(Path(unix[1]))
    tcp = _TCP.fullmatch(text)
    if tcp is None or int(tcp[3]) > _MAX_PORT:
        raise ValueError(_ALLOWED)
    return TcpAddress(tcp[1] or tcp[2] or "", int(tcp[3]))


def checked_listen(text: str) -> str:
    """Return an address to listen at, as written.

    Raises:
        ValueError: the text is not such an address.
    """
    parse_listen(text)
    return text


def listed(value: Any) -> Any:
    """Split a text at its commas, for environment variables; return other values unchanged.

    Raises:
        ValueError: the text is a single address and invalid.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return [checked_listen(value)] if len(parts) == 1 else parts


def lookup_outermost(addresses: Iterable[Address]) -> TcpAddress | None:
    """Return the first TCP address that other machines can reach, else the first TCP address."""
    over_tcp = [address for address in addresses if isinstance(address, TcpAddress)]
    reachable = [address for address in over_tcp if not address.is_local]
    return next(iter([*reachable, *over_tcp]), None)
