"""Keeps the block list of this process like the file that all processes share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from mirror.pull.gate import BlockList
from mirror.store.metadata.block_file import BlockFile, Stamp
from mirror.trouble import Trouble

_LOOK_SECONDS: Final = 0.5  # a block takes effect within a second, also without a command

_log = logging.getLogger(__name__)


#: Tells other replicas of changed blocks, by target; returns JSON that says which have them.
Share = Callable[[Sequence[str]], Awaitable[Mapping[str, Any]]]


class BlockWatch:
    """Reads the file again whenever it has changed; keeps the last list if it cannot be read."""

    def __init__(
        self,
        file: BlockFile,
        blocks: BlockList,
        share: Share | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.file = file
        self.blocks = blocks
        self._share = share
        self._sleep = sleep
        self._read: Stamp | None = None
        self._trouble = Trouble()

    async def refresh(self) -> None:
        """Read the file if it has changed.

        Raises:
            OSError: it cannot be read.
        """
        stamp = await asyncio.to_thread(self.file.stamp)
        if stamp is None and self._read is not None:
            raise OSError(None, "the list of blocks is gone; its blocks stay in force")
        if stamp != self._read:
            self.blocks.command(await asyncio.to_thread(self.file.read))
            self._read = stamp

    async def decide_anew(self) -> None:
        """Apply changed blocks and releases at once.

        Raises:
            OSError: the file cannot be read.
        """
        await self.refresh()
        self.blocks.changed()

    async def shared(self, done: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell the other replicas of changed blocks, once they are in force here.

        ``done`` is a result of ``inventory.blocking``; in a cluster, ``cluster`` is added to it.

        Raises:
            OSError: the file cannot be read.
        """
        await self.refresh()
        if self._share is None:
            return done
        return {**done, "cluster": await self._share([each["target"] for each in done["blocks"]])}

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self._sleep(_LOOK_SECONDS)
            try:
                await self.refresh()
            except OSError as error:
                if self._trouble.met():
                    _log.error("blocks: %s", error.strerror)
            else:
                self._trouble.over()
