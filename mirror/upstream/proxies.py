"""The HTTP proxy for a server: from the configuration or from the environment.

The environment is read by the rules of Go (golang.org/x/net/http/httpproxy), as Docker and
containerd read it: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or the same names in lower case.
"""

import contextlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from yarl import URL

_DEFAULT_SCHEME: Final = "http"
_SCHEMES: Final = frozenset({"http", "https"})
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class InvalidProxyError(ValueError):
    """A text is not the address of an HTTP proxy; the message is one line without a secret."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the key or variable that names it; ``str`` omits user and password."""

    url: URL = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"{self.url.origin()} ({self.source})"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of NO_PROXY: a network or a name; ``port`` is empty for every port."""

    network: Network | None = None
    name: str = ""
    below_only: bool = False
    port: str = ""

    def covers(self, host: str, address: Address | None, port: int) -> bool:
        """Whether a server is reached without a proxy."""
        if self.port not in {"", str(port)}:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return host.endswith(f".{self.name}") or (host == self.name and not self.below_only)


class NoProxy:
    """The servers that are reached without a proxy: this machine and the entries of NO_PROXY."""

    def __init__(self, text: str = "") -> None:
        entries = [entry.strip().lower() for entry in text.split(",")]
        self._everything = "*" in entries
        parsed = (_entry(entry) for entry in entries)
        self._entries = [entry for entry in parsed if entry is not None]

    def covers(self, host: str, port: int) -> bool:
        """Whether a server is reached without a proxy."""
        plain = host.lower()
        address = _lookup_address(plain)
        if self._everything or plain == "localhost" or (address and address.is_loopback):
            return True
        return any(entry.covers(plain, address, port) for entry in self._entries)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy for each scheme of a request."""

    by_scheme: Mapping[str, Proxy]
    direct: NoProxy | None = None

    def lookup(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for a server, None if the server is reached directly."""
        proxy = self.by_scheme.get(scheme)
        if proxy is None or (self.direct is not None and self.direct.covers(host, port)):
            return None
        return proxy


NO_PROXIES: Final = Proxies(MappingProxyType({}))


def configured_proxies(text: str, source: str) -> Proxies:
    """Return the configured proxy for every server; NO_PROXY does not apply to it.

    Raises:
        InvalidProxyError: the text is not the address of a proxy.
    """
    return Proxies(dict.fromkeys(_SCHEMES, parse_proxy(text, source)))


def environment_proxies(environment: Mapping[str, str]) -> Proxies:
    """Return the proxies from the environment.

    HTTP_PROXY is ignored if REQUEST_METHOD is set: under CGI it may hold the field ``Proxy`` of a
    client.

    Raises:
        InvalidProxyError: the value of a variable is not the address of a proxy.
    """
    by_scheme = {}
    for scheme in sorted(_SCHEMES):
        name = f"{scheme}_proxy"
        source = next((each for each in (name.upper(), name) if environment.get(each)), None)
        if source is not None and not (scheme == "http" and environment.get("REQUEST_METHOD")):
            by_scheme[scheme] = parse_proxy(environment[source], source)
    return Proxies(
        by_scheme, NoProxy(environment.get("NO_PROXY") or environment.get("no_proxy", ""))
    )


def parse_proxy(text: str, source: str) -> Proxy:
    """Parse the address of a proxy; the default scheme is http.

    Raises:
        InvalidProxyError: the text is not the address of a proxy.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        scheme, text = _DEFAULT_SCHEME, f"{_DEFAULT_SCHEME}://{text}"
    try:
        url = URL(text)
        usable = scheme.lower() in _SCHEMES and bool(url.host) and url.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        other = scheme.isalnum() and scheme.lower() not in _SCHEMES
        found = f"a proxy over {scheme}" if other else "no address of a proxy"
        raise InvalidProxyError(
            f"{source} names {found}; "
            "allowed: an http or https address such as http://proxy.example.com:3128"
        )
    return Proxy(url, source)


def _entry(entry: str) -> _Entry | None:
    if entry.partition("/")[2].isdigit():
        with contextlib.suppress(ValueError):
            return _Entry(ipaddress.ip_network(entry, strict=False))
    host, colon, port = entry.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address has no port
        host, port = entry, ""
    address = _lookup_address(host.strip("[]"))
    if address is not None:
        return _Entry(ipaddress.ip_network(address), port=port)
    suffix = host[1:] if host.startswith("*.") else host
    name = suffix.removeprefix(".")
    if not name:  # malformed; Go ignores it too
        return None
    return _Entry(name=_ascii(name), below_only=suffix.startswith("."), port=port)


def _lookup_address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _ascii(name: str) -> str:
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        return name
