"""Pulls many images into a cache, a limited number of blobs at once, each blob once.

A failed image does not stop the others.  Cached blobs are checked, and not transferred.  If the
task is cancelled, the cache keeps the bytes that have arrived.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.platform import Platform
from mirror.registry_client.client import BrokenOffError, MirrorClient, Place, PullError
from mirror.registry_client.plan import Plan, Wanted, attach, planned

_PLANNING: Final = 8
_MAX_FRUITLESS: Final = 3

#: Number of bytes of a blob on disk from an earlier, incomplete download.
LeftOf = Callable[[Digest], int]


class Watcher(Protocol):
    """Receives progress; sizes in bytes."""

    def expected(self, images: int) -> None:
        """The number of images is known."""

    def planned(self, wanted: Wanted, size: int) -> None:
        """The size of an image is known."""

    def began(self, wanted: Wanted) -> None:
        """The pull of an image begins."""

    def came(self, wanted: Wanted, size: int, *, fetched: bool) -> None:
        """``size`` more bytes are in the cache: fetched from upstream, or found there."""

    def ended(self, pulled: "Pulled") -> None:
        """The image is complete, or has failed."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result for one image; sizes in bytes, ``reason`` is empty if it succeeded."""

    wanted: Wanted
    plan: Plan | None
    fetched: int
    found: int
    reason: str = ""


@dataclass(slots=True)
class _Tally:
    """Bytes of one image so far."""

    wanted: Wanted
    watcher: Watcher
    fetched: int = 0
    found: int = 0

    def add(self, size: int, *, fetched: bool) -> None:
        if fetched:
            self.fetched += size
        else:
            self.found += size
        self.watcher.came(self.wanted, size, fetched=fetched)


class Puller:
    """Pulls images through one mirror."""

    def __init__(
        self,
        client: MirrorClient,
        left_of: LeftOf,
        watcher: Watcher,
        parallel: int,
        *,
        attached: bool,
    ) -> None:
        """Pull at most ``parallel`` images, and as many blobs, at once.

        ``attached``: pull what is attached to the images too.
        """
        self._attached = attached
        self._client = client
        self._left_of = left_of
        self._watcher = watcher
        self._planning = asyncio.Semaphore(_PLANNING)
        self._images = asyncio.Semaphore(parallel)
        self._blobs = asyncio.Semaphore(parallel)
        self._locks: defaultdict[Digest, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def pull(self, images: Sequence[Wanted], platforms: Sequence[Platform]) -> list[Pulled]:
        """Pull images, for the named platforms, or for all if none is named.

        Returns:
            the results, in the order of the images.
        """
        self._watcher.expected(len(images))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._image(image, platforms)) for image in images]
        return [task.result() for task in tasks]

    async def _image(self, wanted: Wanted, platforms: Sequence[Platform]) -> Pulled:
        plan, tally, reason = None, _Tally(wanted, self._watcher), ""
        try:
            async with self._planning:
                plan = await planned(self._client, wanted, platforms)
                if self._attached:
                    await attach(self._client, plan)
            self._watcher.planned(wanted, plan.blob_bytes)
            async with self._images:
                self._watcher.began(wanted)
                await self._all_blobs(plan, tally)
        except PullError as error:
            reason = str(error)
        pulled = Pulled(wanted, plan, tally.fetched, tally.found, reason)
        self._watcher.ended(pulled)
        return pulled

    async def _all_blobs(self, plan: Plan, tally: _Tally) -> None:
        """Pull every blob to its end even if others fail, so that the next run finds it."""
        work = (self._blob(plan.wanted.place, blob, tally) for blob in plan.blobs.values())
        for ended in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def _blob(self, place: Place, blob: Descriptor, tally: _Tally) -> None:
        async with self._locks[blob.digest], self._blobs:
            left = self._left_of(blob.digest)
            if await self._client.holds(place, blob.digest):
                tally.add(blob.size, fetched=False)
                return
            size = await self._download(place, blob.digest, left, tally)
            if size != blob.size:
                raise PullError(f"{blob.digest} has {size} bytes, not {blob.size} as declared")
            if not await self._client.is_stored(place, blob.digest):
                raise PullError(
                    f"{blob.digest} could not be stored: check max_size, min_free and the disk"
                )

    async def _download(self, place: Place, digest: Digest, left: int, tally: _Tally) -> int:
        """Read a blob and drop the bytes; ``left`` of them came with an earlier download."""
        reached = fruitless = 0
        while True:
            before, position = reached, 0
            try:
                async with aclosing(self._client.blob(place, digest)) as pieces:
                    async for piece in pieces:
                        position += len(piece)
                        if position > reached:
                            found = max(0, min(position, left) - reached)
                            _add(tally, found, position - reached - found)
                            reached = position
                return reached
            except BrokenOffError as error:
                fruitless = 0 if reached > before else fruitless + 1
                if fruitless >= _MAX_FRUITLESS:
                    raise PullError(
                        f"{error}, {fruitless} times: upstream fails or sends wrong bytes; "
                        "see the mirror's log"
                    ) from error


def _add(tally: _Tally, found: int, fetched: int) -> None:
    if found:
        tally.add(found, fetched=False)
    if fetched:
        tally.add(fetched, fetched=True)
