"""Requests that the mirror passes to a registry unchanged, and their answers."""

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from mirror.oci.challenge import over_tls, with_realms
from mirror.oci.image_name import HUB_HOSTS

#: Fields that aiohttp adds by itself; a request must not get fields that its client did not send.
AUTO_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
#: A registry may need long to assemble a layer after its upload.
PASSING_SECONDS: Final = 600.0
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: For one connection only (RFC 9110, 7.6.1), or for a proxy (11.7).
_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "proxy-authorization", "proxy-authenticate", "proxy-authentication-info"),
        "expect",  # the mirror answers it when it reads the body
    }
)
#: The addresses in the fields of an answer (RFC 9110, 10.2.2; RFC 8288, 3).
_ADDRESSES: Final = {"Location": re.compile(".+"), "Link": re.compile("(?<=<)[^>]+")}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request; ``target`` is the path and query as received, ``body`` is None without a body."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: AsyncIterator[bytes] | None = None

    def url(self, registry: URL) -> URL:
        """Return the address to ask, for the address of the registry before ``/v2/``.

        The hosts of Docker Hub serve the same images, but pages of their own, such as /v1/search: a
        request is passed on to the host that the client named.
        """
        named = self.headers.get("Host", "").lower().removesuffix(":443")
        if registry.host in HUB_HOSTS and named in HUB_HOSTS:
            registry = registry.with_host(named)
        return URL(f"{registry}{self.target}", encoded=True)


def end_to_end(headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> CIMultiDict[str]:
    """Return the end-to-end fields (RFC 9110, 7.6.1), in their order."""
    named = {
        name.strip().lower()
        for field in headers.getall("Connection", [])
        for name in field.split(",")
    }
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in _HOP_BY_HOP and name.lower() not in named
    )


def correct_addresses(headers: CIMultiDict[str], registry: URL, named: str) -> None:
    """Make the addresses in an answer (Location, Link, realms) those that its client can follow.

    A registry behind another server may not know the scheme, the port or the path by which clients
    reach it.  Its addresses below ``/v2/`` become relative to the address that the client asked;
    so do all such addresses over http.  An address over https on another host is not changed: the
    client can reach it through the proxy.  Realms over http become https if the registry has TLS.

    Args:
        registry: the address of the registry before ``/v2/``.
        named: the Host field of the request.
    """

    def corrected(found: re.Match[str]) -> str:
        with contextlib.suppress(ValueError):
            return _corrected(found[0], registry, named)
        return found[0]

    for name, address in _ADDRESSES.items():
        values = headers.popall(name, [])
        headers.extend((name, address.sub(corrected, value)) for value in values)
    if registry.scheme == "https":
        values = headers.popall("WWW-Authenticate", [])
        headers.extend(("WWW-Authenticate", with_realms(value, over_tls)) for value in values)


def _corrected(address: str, registry: URL, named: str) -> str:
    parts, base = urlsplit(address), registry.raw_path.rstrip("/")
    if parts.netloc and parts.scheme != "http":
        right = parts.netloc == named and not base
        if right or parts.hostname not in {registry.host, urlsplit(f"//{named}").hostname}:
            return address
    path = address.partition("//")[2].removeprefix(parts.netloc) if parts.netloc else address
    if path.startswith(f"{base}/v2/"):
        path = path.removeprefix(base)
    return path if path.startswith("/v2/") else address


def counted_method(method: str) -> str:
    """Return the method as a metric label; ``other`` for unknown methods."""
    return method if method in _METHODS else "other"
