"""The last responses of upstream, used while upstream is unavailable: listings, and 404s."""

import asyncio
import json
import logging

from mirror.store.interface import MOST_PAGE_BYTES, IndexUnavailableError, Page
from mirror.store.metadata.kv import KeyValueStore

_log = logging.getLogger(__name__)


class Listings:
    """Pages by name; the caller chooses unique names."""

    def __init__(self, records: KeyValueStore) -> None:
        self._records = records
        self._writing = asyncio.Lock()  # at most one encoded page in memory waits for the disk

    async def lookup(self, name: str) -> Page | None:
        record = await self._records.lookup(f"listing {name}")
        if record is None:
            return None
        head, _, body = record.partition(b"\n")
        said = json.loads(head)
        return Page(body if said["found"] else None, said["fields"], said["seen"])

    async def put(self, name: str, page: Page) -> None:
        body = page.body or b""
        if len(body) > MOST_PAGE_BYTES:
            await self.forget(name)
            return
        found = page.body is not None
        head = json.dumps({"found": found, "fields": dict(page.fields), "seen": page.seen})
        try:
            async with self._writing:
                await self._records.put(f"listing {name}", head.encode() + b"\n" + body)
        except IndexUnavailableError as error:
            _log.info("cannot write a listing: %s", error)

    async def forget(self, name: str) -> None:
        try:
            await self._records.remove(f"listing {name}")
        except IndexUnavailableError as error:
            _log.info("cannot remove a listing: %s", error)
