"""A client's own request to a registry, which the mirror only passes on, and the answer to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

#: What aiohttp would add; a client that said nothing there meant to say nothing.
AUTO_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
#: A registry may take long to put together a layer that has just arrived.
PASSING_SECONDS: Final = 600.0
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: For one connection only (RFC 9110, 7.6.1), or for a proxy (11.7).
_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "proxy-authorization", "proxy-authenticate", "proxy-authentication-info"),
        "expect",  # answered where the body is read
    }
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request; ``target`` is path and query as they came, ``body`` None where there is none."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: AsyncIterator[bytes] | None = None


def end_to_end(headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> CIMultiDict[str]:
    """The fields that are for the other end, in their order."""
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
    """The method as a label: one of a few."""
    return method if method in _METHODS else "other"
