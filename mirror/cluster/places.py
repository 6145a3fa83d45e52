"""The bytes of one blob from one place after the other, each from the byte that was reached."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.cluster.tier import TierError
from mirror.pull.parallel import Stream
from mirror.store.interface import Chunk

if TYPE_CHECKING:
    from mirror.cluster.source import ClusterFeed


@dataclass(frozen=True, slots=True)
class Place:
    """A place to get one blob from, beginning at a byte.

    ``name`` is for the log; ``kind`` is a token of Cache-Status, empty for upstream.
    """

    name: str
    kind: str
    open: Callable[[int], AbstractAsyncContextManager[Stream]]


class BlobOfPlaces:
    """The bytes of a blob from ``offset`` on, from one place after the other."""

    def __init__(
        self,
        feed: "ClusterFeed",
        places: AsyncGenerator[Place, None],
        start: int,
        arrived: Callable[[int], None],
    ) -> None:
        self.offset = self._position = start
        self._feed = feed
        self._places = places
        self._arrived = arrived
        self._connection = AsyncExitStack()
        self._opened: tuple[Place, Stream] | None = None
        self._skip = 0  # bytes that a place sends before the position

    @property
    def total(self) -> int | None:
        """The size of the whole blob in bytes, None if it is unknown."""
        return self._feed.total

    async def advance(self) -> None:
        """Open the next place that has the blob.

        Raises:
            UpstreamError: upstream, the last one, does not send it.
        """
        while True:
            await self._connection.aclose()
            place = await anext(self._places)
            if place.kind:  # upstream takes a slot by itself
                await self._connection.enter_async_context(self._feed.slot())
            try:
                opening = place.open(self._position)
                stream = await self._connection.enter_async_context(opening)
                self._feed.opened(place, stream)
            except TierError as error:
                self._feed.failed(error)
            else:
                self._opened, self._skip = (place, stream), self._position - stream.offset
                return

    async def read(self) -> Chunk:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: upstream does not send the rest; or a place sends too much.
        """
        while True:
            assert self._opened is not None, "a place was opened first"
            place, stream = self._opened
            if not place.kind and await self._feed.overtaken():
                await self.advance()
                continue
            try:
                piece = await stream.read()
            except TierError as error:
                self._feed.failed(error)
                await self.advance()
                continue
            if place.kind:
                self._arrived(len(piece))
                if self._position + len(piece) - self._skip > self._feed.most_bytes:
                    raise self._feed.oversized()
                if not piece and self.total not in {None, self._position}:
                    self._feed.failed(TierError(f"{place.name} ended early"))
                    await self.advance()
                    continue
            fresh = piece[self._skip :]
            self._skip -= len(piece) - len(fresh)
            if fresh or not piece:
                self._position += len(fresh)
                return fresh

    async def aclose(self) -> None:
        await self._connection.aclose()
