"""What each tag meant when upstream was last asked: what the mirror knows with upstream gone."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.store.database import IndexUnavailableError
from mirror.store.layout import Layout
from mirror.store.records import RecordIndex

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Link:
    """A tag's manifest, and when upstream said so (Unix seconds)."""

    descriptor: Descriptor
    seen: float


class Tags:
    """Links by name; the caller chooses names that tell upstream, repository and tag apart."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tags")

    async def open(self) -> None:
        """Open the index of tags.

        Raises:
            IndexUnavailableError: the database cannot be used.
        """
        await self._visit(self._open)

    def _open(self) -> None:
        self._index = RecordIndex(self._layout.tags)

    async def close(self) -> None:
        """Close the index."""
        await self._visit(self._index.close)
        self._thread.shutdown()

    async def lookup(self, name: str) -> Link | None:
        """What the tag last meant, or None; an index that cannot be read knows nothing."""
        with contextlib.suppress(IndexUnavailableError):
            record = await self._visit(lambda: self._index.lookup(name))
            return None if record is None else _decoded(record)
        return None

    async def put(self, name: str, link: Link) -> None:
        """Remember what upstream just said.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._visit(lambda: self._index.put(name, _encoded(link)))

    async def forget(self, name: str) -> None:
        """Upstream has no such tag any more.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._visit(lambda: self._index.remove(name))

    async def _visit(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


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
