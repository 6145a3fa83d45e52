"""What each listing said when upstream was last asked: what the mirror knows with upstream gone."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore

_log = logging.getLogger(__name__)
MOST_PAGE_BYTES: Final = 256 * 1024  # a page of tags is a few KiB, the whole list of a busy one 100


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its header fields by name, and when upstream sent it (Unix seconds).

    Without ``body`` upstream said that there is no such listing.
    """

    body: bytes | None
    fields: Mapping[str, str]
    seen: float


class Listings:
    """Pages by name; the caller chooses names that tell all of them apart."""

    def __init__(self, notes: KeyValueStore) -> None:
        self._notes = notes
        self._writing = asyncio.Lock()  # no more than one copy of a page waits for the disk

    async def lookup(self, name: str) -> Page | None:
        """What upstream last said, or None."""
        record = await self._notes.lookup(f"listing {name}")
        if record is None:
            return None
        head, _, body = record.partition(b"\n")
        said = json.loads(head)
        return Page(body if said["found"] else None, said["fields"], said["seen"])

    async def put(self, name: str, page: Page) -> None:
        """Remember what upstream just said, if it is no giant and can be written."""
        body = page.body or b""
        if len(body) > MOST_PAGE_BYTES:
            return
        found = page.body is not None
        head = json.dumps({"found": found, "fields": dict(page.fields), "seen": page.seen})
        try:
            async with self._writing:
                await self._notes.put(f"listing {name}", head.encode() + b"\n" + body)
        except IndexUnavailableError as error:
            _log.info("a listing could not be written down: %s", error)
