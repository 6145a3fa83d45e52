"""Small records beside the objects, used while upstream is unavailable.

The last known manifest of each tag, the last page of each listing, the known 404s, and the private
objects that belong to a repository, as its upstream confirmed.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor, descriptor_fields
from mirror.policy.rules import Meanings, Moment, Seen
from mirror.store.interface import MOST_PAGE_BYTES, IndexUnavailableError, Link, Page
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

    async def meant(self, wanted: Callable[[FullName], bool]) -> set[Digest]:
        """Return what the tags that ``wanted`` accepts mean here while they are held.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        held = await Decisions(self._records).held()
        return {each.digests[0] for _, image, each in held if each.digests and wanted(image)}

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


_log = logging.getLogger(__name__)
_MEANS: Final = "means "


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
            _log.debug("cannot write a listing: %s", error)

    async def forget(self, name: str) -> None:
        try:
            await self._records.remove(f"listing {name}")
        except IndexUnavailableError as error:
            _log.debug("cannot remove a listing: %s", error)


class Decisions:
    """See :class:`mirror.store.interface.DecisionStore`."""

    def __init__(self, records: KeyValueStore) -> None:
        self._records = records

    async def seen(self, repository: str, digest: Digest) -> Seen | None:
        record = await self._records.lookup(f"seen {repository} {digest}")
        if record is None:
            return None
        fields = json.loads(record)
        return Seen(Moment(*fields["first"]), fields["released"], fields["passed"])

    async def see(self, repository: str, digest: Digest, seen: Seen) -> None:
        first = [seen.first.wall, seen.first.boot, seen.first.steady]
        fields = {"first": first, "released": seen.released, "passed": seen.passed}
        await self._put(f"seen {repository} {digest}", fields)

    async def signers(self, repository: str, digest: Digest) -> frozenset[str]:
        record = await self._records.lookup(f"signed {repository} {digest}")
        return frozenset() if record is None else frozenset(json.loads(record)["keys"])

    async def sign(self, repository: str, digest: Digest, keys: frozenset[str]) -> None:
        await self._put(f"signed {repository} {digest}", {"keys": sorted(keys)})

    async def meanings(self, name: str) -> Meanings:
        record = await self._records.lookup(f"{_MEANS}{name}")
        return Meanings() if record is None else parse_meanings(json.loads(record))

    async def mean(self, name: str, meanings: Meanings) -> None:
        await self._put(f"{_MEANS}{name}", meanings_fields(meanings))

    async def learn(self, repository: str, digest: Digest) -> bool:  # noqa: ARG002
        return False  # without a cluster

    async def held(self) -> list[tuple[str, FullName, Meanings]]:
        found = []
        async for page in self._records.pages(_MEANS):
            for key, record in page:
                name = key.removeprefix(_MEANS)
                image, fields = image_of(name), json.loads(record)
                if fields["held"] and image is not None:
                    found.append((name, image, parse_meanings(fields)))
        return found

    async def _put(self, name: str, fields: Mapping[str, Any]) -> None:
        try:
            await self._records.put(name, json.dumps(fields).encode())
        except IndexUnavailableError as error:
            _log.warning("a decision could not be written down: %s", error)


def meanings_fields(meanings: Meanings) -> Mapping[str, Any]:
    """Return what a tag has meant, for JSON."""
    return {"means": list(map(str, meanings.digests)), "held": meanings.held}


def parse_meanings(fields: Mapping[str, Any]) -> Meanings:
    """Undo :func:`meanings_fields`; ValueError, LookupError or TypeError for other fields."""
    return Meanings(tuple(map(Digest.parse, fields["means"])), fields["held"])


_KNOWN: Final = 10_000  # held in memory: each pull of a private image checks every layer


class Links:
    """Links by name; the caller chooses unique names."""

    def __init__(self, records: KeyValueStore) -> None:
        self._records = records
        self._known: Lru[str, bool] = Lru(_KNOWN)

    async def has(self, name: str) -> bool:
        if self._known.get(name):
            return True
        if await self._records.lookup(f"link {name}") is None:
            return False
        self._known.put(name, True)
        return True

    async def put(self, name: str) -> None:
        """Record a link that upstream has just confirmed.

        If the write fails, the mirror asks upstream again at the next request.
        """
        try:
            await self._records.put(f"link {name}", b"")
        except IndexUnavailableError as error:
            _log.debug("cannot write a repository link: %s", error)
        else:
            self._known.put(name, True)
