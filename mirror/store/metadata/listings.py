"""The last responses of upstream, used while upstream is unavailable: listings, and 404s."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore

_log = logging.getLogger(__name__)
#: A page of tags takes a few KiB, the full list of a busy repository 100 KiB.
MOST_PAGE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """A page, its header fields by name, and the time when upstream sent it (Unix seconds).

    ``body`` is None if upstream answered 404, for a listing or for other content.
    """

    body: bytes | None
    fields: Mapping[str, str]
    seen: float


class Listings:
    """Pages by name; the caller chooses unique names."""

    def __init__(self, notes: KeyValueStore) -> None:
        self._notes = notes
        self._writing = asyncio.Lock()  # at most one encoded page in memory waits for the disk

    async def lookup(self, name: str) -> Page | None:
        """Return the last response of upstream, or None."""
        record = await self._notes.lookup(f"listing {name}")
        if record is None:
            return None
        head, _, body = record.partition(b"\n")
        said = json.loads(head)
        return Page(body if said["found"] else None, said["fields"], said["seen"])

    async def put(self, name: str, page: Page) -> None:
        """Record a response; forget the last one instead if the page exceeds MOST_PAGE_BYTES.

        A failed write is skipped.
        """
        body = page.body or b""
        if len(body) > MOST_PAGE_BYTES:
            await self.forget(name)
            return
        found = page.body is not None
        head = json.dumps({"found": found, "fields": dict(page.fields), "seen": page.seen})
        try:
            async with self._writing:
                await self._notes.put(f"listing {name}", head.encode() + b"\n" + body)
        except IndexUnavailableError as error:
            _log.info("cannot write a listing: %s", error)

    async def forget(self, name: str) -> None:
        """Remove a response, if there is one.  A failed write is skipped."""
        try:
            await self._notes.remove(f"listing {name}")
        except IndexUnavailableError as error:
            _log.info("cannot remove a listing: %s", error)
