"""A fill that another process leads; this process reads the file while it grows.

The processes share only the partial file, its lock and the expected size.  The follower polls
them, which costs less than a connection between the processes, and leaves nothing to clean up when
one of them ends.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.pull.fill_reader import FillReader, State
from mirror.store.interface import BlobStore, PartialBlobReader, PartialStatus

#: The polling interval: readers of a growing file wait this long anyway (``WAKE_SECONDS``).
_LOOK_SECONDS: Final = 0.02
#: How long to wait for a leader that makes no progress (it may be stopped); after that, readers
#: fetch the rest themselves.  Longer than any leader waits for its upstream.
_PATIENCE_SECONDS: Final = 120.0


class Following:
    """Follows the processes that lead one fill; closed when the fill ends."""

    def __init__(
        self,
        digest: Digest,
        reader: FillReader,
        blobs: BlobStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = digest
        self._reader = reader
        self._blobs = blobs
        self._clock = clock
        self._tail: PartialBlobReader | None = None

    async def follow(self) -> bool:
        """Show readers the leader's bytes until it stops leading.

        Return False if the leader makes no progress.

        Raises:
            OSError: the partial file cannot be read.
        """
        if self._tail is None:
            self._tail = await self._blobs.tail(self._digest)
        length, since = -1, self._clock()
        while self._tail is not None:
            status = self._tail.look()
            self._show(self._tail, status)
            if not status.led:
                break
            if status.length != length:
                length, since = status.length, self._clock()
            elif self._clock() - since > _PATIENCE_SECONDS:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        if not self._reader.visible:
            self.close()  # no client has read from this file: the next one may differ
        return True

    def leads_to(self, file: FileRange) -> bool:
        """Whether ``file`` is the file that readers have bytes of, renamed or not."""
        return self._tail is None or self._tail.content.is_same_file(file)

    async def decline(self) -> None:
        """Let readers fetch the rest themselves: their file will not grow any more.

        Raises:
            OSError: the bytes that they have read cannot be read again.
        """
        length, hasher = 0, self._digest.hasher()
        if self._tail is not None:
            # Only the bytes that readers may have seen: the end is held back until verified.
            length = self._reader.visible
            hasher = await self._tail.hashed(self._digest, length)
        self._reader.decline(length, hasher)

    def close(self) -> None:
        """Stop following."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    def _show(self, tail: PartialBlobReader, status: PartialStatus) -> None:
        reader = self._reader
        if status.total is None:
            return  # no answer yet, or no known size: the bytes on disk could be the whole blob
        if reader.state is State.ASKING:
            reader.own(tail.content.duplicate())
            reader.begin(status.total, min(status.length, status.total))
        elif status.length > reader.length:
            reader.show(min(status.length, status.total))
