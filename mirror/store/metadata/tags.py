"""The last known manifest of each tag, used while upstream is unavailable."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor, descriptor_fields
from mirror.store.interface import Link
from mirror.store.metadata.kv import KeyValueStore

Watcher = Callable[[FullName, Digest], Awaitable[None]]


class Tags:
    """See :class:`mirror.store.interface.TagStore`."""

    def __init__(self, records: KeyValueStore) -> None:
        self._records = records
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher`` for every image whose link is written."""
        self._watchers.append(watcher)

    async def lookup(self, name: str) -> Link | None:
        record = await self._records.lookup(name)
        return None if record is None else _decoded(record)

    async def pages(
        self, wanted: Callable[[FullName], bool]
    ) -> AsyncGenerator[list[tuple[str, FullName, Link]], None]:
        """Yield the names and links of the images that ``wanted`` accepts, one page at a time.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        async for page in self._records.pages():
            found = ((name, image_of(name), record) for name, record in page)
            links = (
                (name, image, _lookup_decoded(record))
                for name, image, record in found
                if image is not None and wanted(image)
            )
            yield [(name, image, link) for name, image, link in links if link is not None]

    async def put(self, name: str, link: Link) -> None:
        await self._records.put(name, _encoded(link))
        image = image_of(name)
        if image is not None:
            for watcher in self._watchers:
                await watcher(image, link.descriptor.digest)

    async def forget(self, name: str) -> None:
        await self._records.remove(name)


def image_of(name: str) -> FullName | None:
    """Return the image of a link; None if :func:`link_name` did not make the name."""
    parts = name.split(" ", 3)
    return FullName(*parts[:3]) if len(parts) >= 3 else None


def _encoded(link: Link) -> bytes:
    imported = {"imported": True} if link.imported else {}
    return json.dumps(
        {**descriptor_fields(link.descriptor), "seen": link.seen, **imported}
    ).encode()


def _lookup_decoded(record: bytes) -> Link | None:
    """Return a link, or None for another kind of record: the store may hold several kinds."""
    try:
        return _decoded(record)
    except (ValueError, LookupError, TypeError):
        return None


def _decoded(record: bytes) -> Link:
    fields = json.loads(record)
    digest = Digest.parse(fields["digest"])
    descriptor = Descriptor(fields["mediaType"], digest, fields["size"])
    return Link(descriptor, fields["seen"], fields.get("imported", False))
