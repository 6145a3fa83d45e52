"""Reads the answers of a registry to requests for listings."""

import json
import re
from collections.abc import Collection
from typing import Final

import aiohttp
from yarl import URL

from mirror.shares import Hold
from mirror.upstream.addresses import as_ascii
from mirror.upstream.responses import BlobStream, Listing, readable_field

#: Statuses of an answer with content; 203 is that of a proxy on the way.
CONTENT: Final = {200, 203}
PAGES: Final = {"text/html", "application/xhtml+xml"}
_READ_THROUGH_BYTES: Final = 1024 * 1024  # 10 ms to parse
#: Answers that refuse the client, or this request for now, and not the whole referrers API.
_NO_CLIENT: Final = {401, 403}
_NOT_NOW: Final = {407, 408, 425, 429}
#: A link (RFC 8288, 3), also without the angle brackets.
_LINK: Final = re.compile(
    r"""(?:<(?P<address>[^<>]*)>|(?P<bare>(?:/|https?:)[^\s<>;,]+))(?P<parameters>(?:"[^"]*"|[^",<])*)"""
)
_RELATION: Final = re.compile(r""";\s*rel\s*=\s*["']?([^"';]*)""", re.IGNORECASE)
_MOST_SPACE: Final = 32  # on each side of the colon between "name" and the name


class TagStream:
    """A list of tags as it arrives, with the name that the client knows; ``total`` is its size."""

    def __init__(self, stream: BlobStream, prefix: str) -> None:
        """``prefix`` is the part of upstream's name that the client does not know."""
        self._stream = stream
        self._prefix = prefix
        self._most_held = len(f'"name":"{prefix}') + 2 * _MOST_SPACE if prefix else 0
        self._held = b""
        self.total = None if prefix else stream.total

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: see :meth:`BlobStream.read`.
        """
        while piece := await self._stream.read():
            data = self._held + piece
            found = own_name(self._prefix).search(data) if self._most_held else None
            if found is not None:
                data, self._most_held = data[: found.end(1)] + data[found.end() :], 0
            cut = max(len(data) - self._most_held, 0)
            data, self._held = data[:cut], data[cut:]  # the name may begin in the rest
            if data:
                return data
        rest, self._held = self._held, b""
        return rest


def own_name(prefix: str) -> re.Pattern[bytes]:
    """Return the pattern of the repository's name in a list; the prefix follows the group."""
    space = rb"\s{0,%d}" % _MOST_SPACE
    return re.compile(rb'("name"%b:%b")%b' % (space, space, re.escape(prefix.encode())))


def lacks_referrers(response: aiohttp.ClientResponse, registry: URL) -> bool:
    """Whether the status of an answer to a request for referrers says that there is no such API.

    ``registry`` is the URL of the registry: a 401 of another server, such as one for logins of
    people, is not about this client's credentials.
    """
    status = response.status
    if status in CONTENT:
        return False
    if status in _NO_CLIENT:
        return response.url.origin() != registry.origin()
    return status == 501 or (status < 500 and status not in _NOT_NOW)


def listing_page(
    response: aiohttp.ClientResponse,
    body: bytes = b"",
    hold: Hold | None = None,
    *,
    large: bool = False,
) -> Listing:
    """Return the page in an answer."""
    filters = readable_field(response.headers, "OCI-Filters-Applied")
    return Listing(body, _next_query(response), filters, large, hold)


def is_listing(body: bytes, members: Collection[str]) -> bool:
    """Whether a body is a JSON object with one of these members; a large body is not parsed."""
    if len(body) > _READ_THROUGH_BYTES:
        return body.lstrip().startswith(b"{")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and any(member in document for member in members)


def is_broken_json(body: bytes) -> bool:
    """Whether a body begins as a JSON object and is none, so that a part may be missing."""
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return body.lstrip().startswith(b"{")
    return False


def _next_query(response: aiohttp.ClientResponse) -> str:
    """Return the query of the next page, as upstream wrote it; empty without a readable link.

    A link without a relation is one to the next page too: Docker's and ORAS' clients look at no
    other field of a link.
    """
    for field in response.headers.getall("Link", []):
        for link in _LINK.finditer(field):
            relation = _RELATION.search(link["parameters"])
            if relation is None or "next" in relation[1].lower().split():
                query = (link["address"] or link["bare"] or "").partition("#")[0].partition("?")[2]
                return as_ascii(query)
    return ""
