"""One edition after another: the one in force, and those whose last request is not over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from mirror.config.model import Config
from mirror.http.server_options import Reception
from mirror.server.generation import Edition, opened_edition
from mirror.server.limits import answer_limits, question_limits, slot_limits
from mirror.server.shared_state import Ground, splitting


class Editions:
    """Exchanges editions under those who receive clients."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._opened: dict[Edition, AsyncExitStack] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._current: Edition | None = None
        self._receivers: list[Callable[[Reception], None]] = []

    @property
    def current(self) -> Edition:
        """The edition in force."""
        assert self._current is not None, "one is in force from the start"
        return self._current

    def tell(self, receiver: Callable[[Reception], None]) -> None:
        """Have somebody told of every reception from the next one on."""
        self._receivers.append(receiver)

    async def open(self, config: Config) -> Edition:
        """Open an edition, which is not in force yet.

        Raises:
            StartError: something that it names cannot be used.
        """
        async with AsyncExitStack() as stack:
            edition = await stack.enter_async_context(opened_edition(config, self._ground))
            self._opened[edition] = stack.pop_all()
        return edition

    async def drop(self, edition: Edition) -> None:
        """Close an edition."""
        await self._opened.pop(edition).aclose()

    def begin(self, edition: Edition) -> None:
        """Put an edition in force; the former one ends when nothing goes by it any more."""
        former, self._current = self._current, edition
        self._ground.slots.change(slot_limits(edition.config), splitting(edition.config))
        rooms = self._ground.store.rooms
        rooms.questions.change(question_limits(edition.config))
        rooms.answers.change(answer_limits(edition.config))
        for receive in self._receivers:
            receive(edition.reception)
        self._ground.table.close()
        if former is not None:
            for gone in former.config.enabled().keys() - edition.config.enabled().keys():
                self._ground.metrics.upstream_gone(gone)
            ending = asyncio.create_task(self._end(former), name="edition")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, edition: Edition) -> None:
        await edition.over()
        await self.drop(edition)

    async def close(self) -> None:
        """Close all of them, whatever is under way."""
        for ending in list(self._ending):
            ending.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for edition in list(self._opened):
            await self.drop(edition)


@asynccontextmanager
async def opened_editions(config: Config, ground: Ground) -> AsyncIterator[Editions]:
    """Editions, of which the first is in force.

    Raises:
        StartError: something that ``config`` names cannot be used.
    """
    editions = Editions(ground)
    try:
        editions.begin(await editions.open(config))
        yield editions
    finally:
        await editions.close()
