"""Where a fill gets its bytes from.

Without a cluster that is always upstream (:class:`Source`).  A cluster puts other
places before it, such as an object store, and another replica that downloads the same blob.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
)
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.pull.parallel import Segments, Stream
from mirror.pull.policy import PASSING_BUFFER_BYTES, Splitting
from mirror.pull.slots import Slots
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import UpstreamError
from mirror.upstream.responses import BlobStream


class Feed(Protocol):
    """The places that have the bytes of one fill."""

    @property
    def several(self) -> bool:
        """Whether there is more than one place."""

    @property
    def place(self) -> str:
        """The kind of the place that was opened last, as a token of Cache-Status; "": upstream."""

    def spread(
        self, digest: Digest, start: int, arrived: Callable[[int], None]
    ) -> AbstractAsyncContextManager[Stream]:
        """Open the blob from byte ``start`` on.

        ``arrived`` is called with the size of each piece that arrives, in any order.
        """

    @property
    def leads(self) -> bool:
        """Whether this replica asks upstream for the blob, or gets it from there."""

    def lead(self) -> bool:
        """Promise another replica that these bytes come from no replica, from now on.

        The promise ends if another replica takes the download over.

        Returns:
            False, without a promise, if they come from a replica now.
        """

    async def blame(self, digest: Digest) -> bool:
        """Note that the bytes are wrong.

        Returns:
            whether another place is asked first from now on.
        """

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        """Note that the fill fails because its bytes are wrong."""

    def ended(self, digest: Digest, *, stored: bool) -> None:
        """Note that the fill has ended; ``stored``: the blob is in the store."""


class Feeds(Protocol):
    """Makes the feed of each fill."""

    def feed(self, source: "Source", digest: Digest) -> Feed:
        """Return the feed of a fill, whose last place is ``source``."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a blob: a repository of an upstream."""

    registry: Endpoints
    repository: str
    slots: Slots

    @asynccontextmanager
    async def open(
        self, digest: Digest, start: int, stop: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Wait for a slot, then request a blob that passes through; see ``open_blob``.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        async with (
            self.slots.taken(self.registry.name),
            self.registry.open_blob(
                self.repository, digest, start, stop, PASSING_BUFFER_BYTES
            ) as stream,
        ):
            yield stream

    @asynccontextmanager
    async def spread(
        self, digest: Digest, start: int, arrived: Callable[[int], None]
    ) -> AsyncIterator[Segments]:
        """Like :meth:`open`, but add connections as long as they make the download faster.

        ``arrived`` is called with the size of each piece that arrives, in any order.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        clock = asyncio.get_running_loop().time
        async with (
            self.slots.taken(self.registry.name),
            aclosing(Segments(_BlobFetcher(self, digest), start, clock, arrived)) as stream,
        ):
            await stream.open()
            yield stream

    # See :class:`Feed`.

    place = ""
    leads = True

    @property
    def several(self) -> bool:
        return bool(self.registry.mirrors)

    def lead(self) -> bool:
        return True

    async def blame(self, digest: Digest) -> bool:
        return self.registry.blame(digest)

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        self.registry.log.mismatched(digest, error)

    def ended(self, digest: Digest, *, stored: bool) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _BlobFetcher:
    """Requests parts of a blob for its fill."""

    source: Source
    digest: Digest

    @property
    def upstream(self) -> str:
        return self.source.registry.name

    @property
    def splitting(self) -> Splitting:
        return self.source.slots.splitting

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[BlobStream]:
        return self.source.registry.open_blob(self.source.repository, self.digest, start, stop)

    def further(self) -> AbstractContextManager[None] | None:
        return self.source.slots.try_taken(self.upstream)

    def calm(self) -> None:
        self.source.slots.calm(self.upstream)
