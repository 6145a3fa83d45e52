"""What each tag meant when upstream was last asked: what the mirror knows with upstream gone."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor
from mirror.store.metadata.kv import KeyValueStore

Watcher = Callable[[FullName, Digest], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Link:
    """A tag's manifest, and when upstream said so (Unix seconds).

    ``imported``: the operator did, who takes it back when he likes: it does not become too old.
    """

    descriptor: Descriptor
    seen: float
    imported: bool = False


class Tags:
    """Links by name (see :func:`link_name`)."""

    def __init__(self, notes: KeyValueStore) -> None:
        self._notes = notes
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Have ``watcher`` told of every image whose manifest is written down."""
        self._watchers.append(watcher)

    async def lookup(self, name: str) -> Link | None:
        """What the tag last meant, or None; an index that cannot be read knows nothing."""
        record = await self._notes.lookup(name)
        return None if record is None else _decoded(record)

    async def pages(
        self, wanted: Callable[[FullName], bool]
    ) -> AsyncGenerator[list[tuple[str, FullName, Link]], None]:
        """The names of images that are ``wanted``, and what they mean, a page at a time.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        async for page in self._notes.pages():
            found = ((name, image_of(name), record) for name, record in page)
            links = (
                (name, image, _lookup_decoded(record))
                for name, image, record in found
                if image is not None and wanted(image)
            )
            yield [(name, image, link) for name, image, link in links if link is not None]

    async def put(self, name: str, link: Link) -> None:
        """Remember what upstream just said.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._notes.put(name, _encoded(link))
        image = image_of(name)
        if image is not None:
            for watcher in self._watchers:
                await watcher(image, link.descriptor.digest)

    async def forget(self, name: str) -> None:
        """Upstream has no such tag any more.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._notes.remove(name)


def link_name(image: FullName, accept: str = "") -> str:
    """The name of what an image means to clients, or to those that ``accept`` no more than that."""
    return f"{image.registry} {image.repository} {image.reference} {accept}".rstrip()


def image_of(name: str) -> FullName | None:
    """Which image a link is of; None where the name is none of :func:`link_name`."""
    parts = name.split(" ", 3)
    return FullName(*parts[:3]) if len(parts) >= 3 else None


def _encoded(link: Link) -> bytes:
    descriptor = link.descriptor
    return json.dumps(
        {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
            "seen": link.seen,
            **({"imported": True} if link.imported else {}),
        }
    ).encode()


def _lookup_decoded(record: bytes) -> Link | None:
    """A link, None where a record is something else: others may write into the same notes."""
    try:
        return _decoded(record)
    except (ValueError, LookupError, TypeError):
        return None


def _decoded(record: bytes) -> Link:
    fields = json.loads(record)
    digest = Digest.parse(fields["digest"])
    descriptor = Descriptor(fields["mediaType"], digest, fields["size"])
    return Link(descriptor, fields["seen"], fields.get("imported", False))
