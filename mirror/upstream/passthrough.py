"""Requests that the mirror passes to a registry unchanged, and their answers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

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
#: Other hosts of a registry, by its host.  They serve the same images, but pages of their own, such
#: as /v1/search: a request is passed on to the host that the client named.
_OTHER_HOSTS: Final = {"registry-1.docker.io": frozenset({"index.docker.io"})}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request; ``target`` is the path and query as received, ``body`` is None without a body."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: AsyncIterator[bytes] | None = None

    def url(self, registry: URL) -> URL:
        """Return the address to ask, for the address of the registry before ``/v2/``."""
        named = self.headers.get("Host", "").lower().removesuffix(":443")
        if named in _OTHER_HOSTS.get(registry.host or "", ()):
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


def counted_method(method: str) -> str:
    """Return the method as a metric label; ``other`` for unknown methods."""
    return method if method in _METHODS else "other"
