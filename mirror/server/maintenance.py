"""Regular work on the cache: protect the images of ``[[keep]]``, drop expired objects, read blocks.

Every process marks the images that it stores; only the first reviews all of them and drops objects.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mirror.config.model import Config
from mirror.config.policy import configured_pins, kept_images
from mirror.oci.image_glob import FullName
from mirror.pull.gate import BlockList
from mirror.server.store import Store, cache_limits
from mirror.store.images.keep import Rule, nothing
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.background import Expiry, Scrub
from mirror.store.metadata.operator_files import BlockFile, Stamp
from mirror.trouble import Trouble

_REVIEW_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 10.0
_BLOCKS_SECONDS: Final = 0.5  # a block takes effect within a second, also without a command
_MUCH: Final = 0.8  # of max_size

_log = logging.getLogger(__name__)


def keeping_rule(config: Config, chosen: Collection[str], meant: Container[FullName]) -> Rule:
    """The rule that tells which images are kept.

    ``chosen`` are those of the keep list, ``meant`` the digests of held tags.
    """
    globs, pins = kept_images(config), configured_pins(config)
    pinned = {replace(pin.image, reference=str(pin.digest)) for pin in pins.values()}

    def is_kept(image: FullName) -> bool:
        named = image in pinned or image in meant or str(image) in chosen
        return named or any(glob.matches(image) for glob in globs)

    return is_kept if globs or pinned or chosen or config.policy else nothing


class Maintenance:
    """The rules in force, and the tasks that apply them."""

    def __init__(self, store: Store, *, first: bool) -> None:
        self._store = store
        self._first = first
        self._tasks: list[asyncio.Task[None]] = []
        self._scrub: asyncio.Task[None] | None = None
        self._scrub_seconds = 0.0

    def apply_options(self, config: Config) -> None:
        self._cancel()
        self._keep(config)
        self._tasks.append(asyncio.create_task(self._follow_list(config), name="keep list"))
        if not self._first:
            return
        self._tasks.append(asyncio.create_task(self._review(config), name="keep"))
        if config.cache.max_age.seconds:
            aging = Expiry(
                self._store.objects, config.cache.max_age.seconds, self._store.keeping.is_settled
            )
            self._tasks.append(asyncio.create_task(aging.run(), name="max_age"))
        self._scrub_every(config.cache.scrub.seconds)

    def close(self) -> None:
        self._cancel()
        self._scrub_every(0.0)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _scrub_every(self, seconds: float) -> None:
        """Hash the cache once per ``seconds``, 0 for never; continues from its last position."""
        if seconds == self._scrub_seconds:
            return
        self._scrub_seconds = seconds
        if self._scrub is not None:
            self._scrub.cancel()
            self._scrub = None
        if seconds:
            scrub = Scrub(self._store.objects, self._store.layout.scrub, seconds)
            self._scrub = asyncio.create_task(scrub.run(), name="scrub")

    def _keep(self, config: Config) -> None:
        store = self._store
        store.keeping.rule = keeping_rule(config, store.keep_list.known, store.keeping.meant)

    async def _follow_list(self, config: Config) -> None:
        """Apply the keep list when another process has changed it."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if await asyncio.to_thread(self._store.keep_list.reread):
                self._keep(config)

    async def _review(self, config: Config) -> None:
        """Review at intervals: moved tags release old images, and an index may be lost."""
        keeping, due, warned = self._store.keeping, 0.0, False
        while True:
            with contextlib.suppress(OSError, IndexUnavailableError):  # the store heals itself
                if time.monotonic() >= due or not await keeping.is_settled():
                    if config.policy:
                        await self._read_held()
                    kept = await keeping.review()
                    due = time.monotonic() + _REVIEW_SECONDS
                    warned = warned or _warned(kept, cache_limits(config).max_bytes)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _read_held(self) -> None:
        """Read what held tags mean here; other workers may have changed it."""
        held = {
            replace(image, reference=str(meanings.digests[0]))
            for _, image, meanings in await self._store.decisions.held()
            if meanings.digests
        }
        meant = self._store.keeping.meant
        meant |= held
        meant &= held


def _warned(kept: int, most: int) -> bool:
    """Warn if kept images leave little room; return whether it did."""
    if kept > _MUCH * most:
        _log.warning(
            "[[keep]] keeps %d of at most %d bytes: there is little room for anything else; "
            "raise max_size, or keep less",
            kept,
            most,
        )
    return kept > _MUCH * most


#: Tells other replicas of changed blocks, by target; returns JSON that says which have them.
Share = Callable[[Sequence[str]], Awaitable[Mapping[str, Any]]]


class BlockWatch:
    """Reads the file again whenever it has changed; keeps the last list if it cannot be read."""

    def __init__(
        self,
        file: BlockFile,
        blocks: BlockList,
        share: Share | None = None,
    ) -> None:
        self.file = file
        self.blocks = blocks
        self._share = share
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

        ``done`` is a result of ``inventory.ruling``; in a cluster, ``cluster`` is added to it.

        Raises:
            OSError: the file cannot be read.
        """
        await self.refresh()
        if self._share is None:
            return done
        return {**done, "cluster": await self._share([each["target"] for each in done["blocks"]])}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_BLOCKS_SECONDS)
            try:
                await self.refresh()
            except OSError as error:
                if self._trouble.met():
                    _log.error("blocks: %s", error.strerror)
            else:
                self._trouble.over()
