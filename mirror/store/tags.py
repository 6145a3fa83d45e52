"""What each tag meant when upstream was last asked: what the mirror knows with upstream gone."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.store.database import IndexDamagedError, IndexUnavailableError, discard
from mirror.store.layout import Layout
from mirror.store.records import RecordIndex

R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Link:
    """A tag's manifest, and when upstream said so (Unix seconds)."""

    descriptor: Descriptor
    seen: float


class Tags:
    """Links by name; the caller chooses names that tell upstream, repository and tag apart."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._index: RecordIndex | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tags")

    async def open(self) -> None:
        """Open the index of tags; where that fails no tag is known until :meth:`heal` succeeds."""
        await self._visit(self._heal)

    async def heal(self) -> None:
        """Open again what was damaged, removed, or could not be opened; to be called often."""
        await self._visit(self._heal)

    def _heal(self) -> None:
        if self._index is not None and self._index.in_place():
            return
        self._close()
        with contextlib.suppress(OSError, IndexUnavailableError):  # the objects' alarm tells of it
            try:
                self._index = RecordIndex(self._layout.tags)
            except IndexDamagedError as error:
                _log.error("%s: %s; it is made anew, without its tags", self._layout.tags, error)
                discard(self._layout.tags)
                self._index = RecordIndex(self._layout.tags)

    async def close(self) -> None:
        """Close the index."""
        await self._visit(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(IndexUnavailableError):
                index.close()

    async def lookup(self, name: str) -> Link | None:
        """What the tag last meant, or None; an index that cannot be read knows nothing."""
        with contextlib.suppress(IndexUnavailableError):
            record = await self._visit(lambda: self._opened.lookup(name))
            return None if record is None else _decoded(record)
        return None

    async def put(self, name: str, link: Link) -> None:
        """Remember what upstream just said.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._visit(lambda: self._opened.put(name, _encoded(link)))

    async def forget(self, name: str) -> None:
        """Upstream has no such tag any more.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._visit(lambda: self._opened.remove(name))

    @property
    def _opened(self) -> RecordIndex:
        if self._index is None:
            raise IndexUnavailableError("the index of tags is not open")
        return self._index

    async def _visit(self, function: Callable[[], R]) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._guarded, function)

    def _guarded(self, function: Callable[[], R]) -> R:
        try:
            return function()
        except IndexDamagedError:
            self._close()
            raise


def _encoded(link: Link) -> bytes:
    descriptor = link.descriptor
    return json.dumps(
        {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
            "seen": link.seen,
        }
    ).encode()


def _decoded(record: bytes) -> Link:
    fields = json.loads(record)
    digest = Digest.parse(fields["digest"])
    return Link(Descriptor(fields["mediaType"], digest, fields["size"]), fields["seen"])
