"""A fill that another process leads, read from this one while it grows.

The partial file, its lock and what it is expected to become are all that the processes share:
whoever follows looks at them a few times in a row, which costs less than a connection between
the processes and cannot outlive any of them.
"""

import asyncio
from typing import Final

from mirror.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.pull.fill_reader import FillReader, State
from mirror.store.local.blobs import Blobs
from mirror.store.local.partial import PartialReader, PartialStatus

#: How often to look: as long as readers of a growing file wait for more anyway.
_LOOK_SECONDS: Final = 0.02
#: A leader that gets no further, stopped perhaps, is waited for so long; then its readers go on
#: by themselves.  Longer than any leader waits for its upstream.
_PATIENCE_SECONDS: Final = 120.0


class Following:
    """What one fill sees of its leaders elsewhere; closed when the fill ends."""

    def __init__(self, digest: Digest, reader: FillReader, blobs: Blobs) -> None:
        self._digest = digest
        self._reader = reader
        self._blobs = blobs
        self._tail: PartialReader | None = None

    async def follow(self) -> bool:
        """Show what the leader has until it leads no more; False: it gets no further.

        Raises:
            OSError: the disk says no.
        """
        if self._tail is None:
            self._tail = await self._blobs.tail(self._digest)
        loop = asyncio.get_running_loop()
        length, since = -1, loop.time()
        while self._tail is not None:
            status = self._tail.look()
            self._show(self._tail, status)
            if not status.led:
                break
            if status.length != length:
                length, since = status.length, loop.time()
            elif loop.time() - since > _PATIENCE_SECONDS:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        if not self._reader.visible:
            self.close()  # nobody has read of it: whatever comes next will do as well
        return True

    def leads_to(self, fd: Descriptor) -> bool:
        """Whether the file at ``fd`` is, or became of, the one whose bytes readers have."""
        return self._tail is None or self._tail.is_file_of(fd)

    async def decline(self) -> None:
        """Leave the readers to themselves: the file they have read goes no further.

        Raises:
            OSError: what they have read is no longer there.
        """
        length, hasher = 0, self._digest.hasher()
        if self._tail is not None:
            # No more than readers may have had: the end stays back until all of it is verified.
            length = self._reader.visible
            hasher = await self._blobs.hashed(self._tail, self._digest, length)
        self._reader.decline(length, hasher)

    def close(self) -> None:
        """Look no more."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    def _show(self, tail: PartialReader, status: PartialStatus) -> None:
        reader = self._reader
        if status.total is None:
            return  # it has no answer yet, or knows no end: then what it has could be the whole
        if reader.state is State.ASKING:
            reader.own(tail.reader())
            reader.begin(status.total, min(status.length, status.total))
        elif status.length > reader.length:
            reader.show(min(status.length, status.total))
