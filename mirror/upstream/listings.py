"""Reads the answers of a registry to requests for listings.  Pure functions, no I/O."""

import json
from typing import Final

import aiohttp
from yarl import URL

from mirror.shares import Hold
from mirror.upstream.responses import Listing, readable_field

PAGES: Final = {"text/html", "application/xhtml+xml"}
_READ_THROUGH_BYTES: Final = 1024 * 1024  # 10 ms to parse
#: Answers that refuse the client, or this request for now, and not the whole referrers API.
_NO_CLIENT: Final = {401, 403}
_NOT_NOW: Final = {407, 408, 425, 429}


def lacks_referrers(response: aiohttp.ClientResponse, registry: URL) -> bool:
    """Whether the status of an answer to a request for referrers says that there is no such API.

    ``registry`` is the URL of the registry: a 401 of another server, such as one for logins of
    people, is not about this client's credentials.
    """
    status = response.status
    if status == 200:
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


def is_listing(body: bytes, member: str) -> bool:
    """Whether a body is a JSON object with this member; a large body is not parsed."""
    if len(body) > _READ_THROUGH_BYTES:
        return body.lstrip().startswith(b"{")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and member in document


def is_broken_json(body: bytes) -> bool:
    """Whether a body begins as a JSON object and is none, so that a part may be missing."""
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return body.lstrip().startswith(b"{")
    return False


def _next_query(response: aiohttp.ClientResponse) -> str:
    """Return the query of the next page; empty without a readable link."""
    try:
        following = response.links["next"]["url"] if "next" in response.links else None
    except ValueError:
        return ""
    return following.raw_query_string if isinstance(following, URL) else ""
