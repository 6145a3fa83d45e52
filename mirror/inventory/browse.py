"""The public images of a cache, for browsing: a search, and one repository with its layers.

The results are JSON, for the pages and for ``/api/v1``; the field names are therefore stable.
Sizes are bytes, times are RFC 3339.  Private images are never part of them.  A search reads a
snapshot of the catalogue, so that its cost does not depend on the number of visitors.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.inventory.listing import rfc3339
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName, ImageGlob, is_glob
from mirror.oci.image_name import familiar_reference, familiar_repository
from mirror.store.images.catalogue import Catalogue, Named
from mirror.store.images.image import CachedImage, Node
from mirror.store.local.layout import BLOBS, MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects

PAGE: Final = 50
ORDERS: Final = ("name", "size", "used")
_MOST_IMAGES: Final = 20_000
_MOST_USERS: Final = 8  # of one blob that are remembered by name
_NAMED: Final = 3
_MOST_TAGS: Final = 100
_MOST_PLATFORMS: Final = 20
_MOST_LAYERS: Final = 150
_FRESH_SECONDS: Final = 2.0
_REST: Final = 20  # a snapshot that took a second to make is used for 20 seconds


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a snapshot.

    ``familiar`` is its name as typed after ``docker pull``, ``text`` what a search looks at.
    """

    name: FullName
    familiar: str
    text: str
    digest: Digest
    size: int
    platforms: tuple[str, ...]
    whole: bool
    used: float

    def told(self, *, kept: bool) -> dict[str, Any]:
        return {
            "name": str(self.name),
            "familiar": self.familiar,
            "registry": self.name.registry,
            "repository": self.name.repository,
            "reference": self.name.reference,
            "digest": str(self.digest),
            "platforms": self.platforms,
            "bytes": self.size,
            "whole": self.whole,
            "kept": kept,
            "last_used": rfc3339(self.used),
        }


@dataclass(slots=True)
class Snapshot:
    """The images of a cache at one time; ``users`` are the first images that have a blob."""

    entries: list[Entry] = field(default_factory=list)
    places: defaultdict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    truncated: bool = False
    _users: defaultdict[int, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    _counts: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _seen: set[Digest] = field(default_factory=set)

    def add(self, image: CachedImage) -> None:
        """Add an image; several names of one manifest count once among the users of its blobs."""
        assert image.name is not None, "named images only"
        name = image.name
        repository = familiar_repository(name.registry, name.repository)
        platforms = tuple(each.platform for each in image.platforms if each.platform)
        entry = Entry(
            name=name,
            familiar=repository + familiar_reference(name.reference),
            text=f"{name} {image.digest}".lower(),
            digest=image.digest,
            size=image.size,
            platforms=platforms[:_MOST_PLATFORMS],
            whole=image.whole,
            used=image.used,
        )
        self.entries.append(entry)
        self.places[name.place].append(entry)
        if image.digest in self._seen:
            return
        self._seen.add(image.digest)
        for key in image.objects:
            if not key.is_manifest:
                users = self._users[_mark(key.digest)]
                self._counts[_mark(key.digest)] += 1
                if len(users) < _MOST_USERS:
                    users.append(entry)

    def sharing(self, blob: Digest, image: Digest) -> tuple[int, list[str]]:
        """Return the number of other images that have a blob, and the names of a few of them."""
        mark = _mark(blob)
        others = [each.familiar for each in self._users.get(mark, ()) if each.digest != image]
        return max(self._counts.get(mark, 1) - 1, 0), others[:_NAMED]


def _mark(digest: Digest) -> int:
    return int(digest.hex[:15], 16)  # 60 bits identify it in a quarter of the memory


class Browser:
    """Finds public images; several visitors share one snapshot."""

    def __init__(
        self,
        catalogue: Catalogue,
        objects: Objects,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``catalogue`` has the public section only."""
        self._catalogue = catalogue
        self._objects = objects
        self._monotonic = monotonic
        self._snapshot = Snapshot()
        self._until = -1.0
        self._making = asyncio.Lock()

    def outdate(self) -> None:
        self._until = -1.0

    async def _current(self) -> Snapshot:
        async with self._making:
            started = self._monotonic()
            if started >= self._until:
                self._snapshot = await self._made()
                now = self._monotonic()
                self._until = now + max(_FRESH_SECONDS, _REST * (now - started))
        return self._snapshot

    async def _made(self) -> Snapshot:
        snapshot = Snapshot()
        async for image in self._catalogue.images():
            if len(snapshot.entries) >= _MOST_IMAGES:
                snapshot.truncated = True
                break
            snapshot.add(image)
            await asyncio.sleep(0)
        snapshot.entries.sort(key=lambda entry: entry.familiar)
        return snapshot

    async def has(self, glob: ImageGlob) -> bool:
        """Return whether an image of the glob's repositories is cached for all clients.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        places, place = (await self._current()).places, f"{glob.registry}/{glob.repository}"
        if not is_glob(place):
            return place in places
        return any(glob.is_in(entries[0].name) for entries in places.values())

    async def search(
        self, text: str, order: str, page: int, keeps: Callable[[FullName], bool]
    ) -> dict[str, Any]:
        """Return one page (from 1 on) of the images whose names contain all words of ``text``.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        snapshot = await self._current()
        words = text.lower().split()
        found = [each for each in snapshot.entries if all(word in each.text for word in words)]
        if order != "name":
            found.sort(key=_ORDERS[order], reverse=True)
        pages = max(-(-len(found) // PAGE), 1)
        page = min(max(page, 1), pages)
        shown = found[(page - 1) * PAGE : page * PAGE]
        return {
            "images": [each.told(kept=keeps(each.name)) for each in shown],
            "total": len(found),
            "page": page,
            "pages": pages,
            "truncated": snapshot.truncated,
        }

    async def repository(
        self, place: str, reference: str, keeps: Callable[[FullName], bool]
    ) -> dict[str, Any] | None:
        """Return the images of ``registry/repository``, and the layers of one of them.

        Without a ``reference`` that is the image that was used last.  None if nothing is cached.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        snapshot = await self._current()
        images = sorted(snapshot.places.get(place, ()), key=_ORDERS["used"], reverse=True)
        chosen = next((each for each in images if each.name.reference == reference), None)
        if not images or (reference and chosen is None):
            return None
        chosen = chosen or images[0]
        return {
            "registry": chosen.name.registry,
            "repository": chosen.name.repository,
            "familiar": familiar_repository(chosen.name.registry, chosen.name.repository),
            "images": [each.told(kept=keeps(each.name)) for each in images[:_MOST_TAGS]],
            "total": len(images),
            "chosen": {
                **chosen.told(kept=keeps(chosen.name)),
                "platforms": await self._platforms(chosen, snapshot),
            },
        }

    async def _platforms(self, entry: Entry, snapshot: Snapshot) -> list[dict[str, Any]]:
        named = Named(self._catalogue.sections[0], "", entry.name, entry.digest, is_index=False)
        found = await self._catalogue.resolved([named])
        platforms = found[0].platforms[:_MOST_PLATFORMS] if found else []
        nodes = await self._catalogue.nodes((MANIFESTS,), [each.digest for each in platforms])
        stored = await self._objects.held(_blobs(nodes.values()))
        return [
            {
                "platform": each.platform or None,
                "digest": str(each.digest),
                "bytes": each.size,
                "missing_bytes": each.missing,
                "layers": [
                    _layer(part.digest, part.size, entry, snapshot, stored)
                    for part in nodes[key].blobs[1 : 1 + _MOST_LAYERS]
                ]
                if (key := ObjectKey(MANIFESTS, each.digest)) in nodes
                else [],
            }
            for each in platforms
        ]


def _layer(
    digest: Digest, size: int, entry: Entry, snapshot: Snapshot, stored: Collection[ObjectKey]
) -> dict[str, Any]:
    others, names = snapshot.sharing(digest, entry.digest)
    return {
        "digest": str(digest),
        "bytes": size,
        "stored": ObjectKey(BLOBS, digest) in stored,
        "shared_with": others,
        "shared_names": names,
    }


def _blobs(nodes: Collection[Node]) -> Sequence[ObjectKey]:
    parts = (part for node in nodes for part in node.blobs[: 1 + _MOST_LAYERS])
    return [ObjectKey(BLOBS, part.digest) for part in parts]


_ORDERS: Final[dict[str, Callable[[Entry], float]]] = {
    "size": lambda entry: entry.size,
    "used": lambda entry: entry.used,
}
