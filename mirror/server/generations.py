"""The generation in force, and former ones whose last requests have not ended."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from mirror.config.model import Config
from mirror.http.server_options import ServerOptions
from mirror.server.generation import Generation, opened_generation
from mirror.server.limits import answer_limits, question_limits, slot_limits
from mirror.server.shared_state import SharedState, splitting


class Generations:
    """Switches between generations while the mirror serves."""

    def __init__(self, shared_state: SharedState) -> None:
        self._shared_state = shared_state
        self._opened: dict[Generation, AsyncExitStack] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._current: Generation | None = None
        self._receivers: list[Callable[[ServerOptions], None]] = []

    @property
    def current(self) -> Generation:
        """The generation in force."""
        assert self._current is not None, "one is in force from the start"
        return self._current

    def tell(self, receiver: Callable[[ServerOptions], None]) -> None:
        """Call ``receiver`` with the server options of every new generation."""
        self._receivers.append(receiver)

    async def open(self, config: Config) -> Generation:
        """Open a generation; ``begin`` puts it in force.

        Raises:
            UserError: something that ``config`` names cannot be used.
        """
        async with AsyncExitStack() as stack:
            generation = await stack.enter_async_context(
                opened_generation(config, self._shared_state)
            )
            self._opened[generation] = stack.pop_all()
        return generation

    async def drop(self, generation: Generation) -> None:
        """Close a generation."""
        await self._opened.pop(generation).aclose()

    def begin(self, generation: Generation) -> None:
        """Put a generation in force; the former one closes when its last request and fill end."""
        former, self._current = self._current, generation
        self._shared_state.slots.change(
            slot_limits(generation.config), splitting(generation.config)
        )
        rooms = self._shared_state.store.rooms
        rooms.questions.change(question_limits(generation.config))
        rooms.answers.change(answer_limits(generation.config))
        for receive in self._receivers:
            receive(generation.options)
        self._shared_state.table.close()
        if former is not None:
            for gone in former.config.enabled().keys() - generation.config.enabled().keys():
                self._shared_state.metrics.upstream_gone(gone)
            ending = asyncio.create_task(self._end(former), name="edition")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, generation: Generation) -> None:
        await generation.over()
        await self.drop(generation)

    async def close(self) -> None:
        """Close all generations, without waiting for their requests and fills."""
        for ending in list(self._ending):
            ending.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for generation in list(self._opened):
            await self.drop(generation)


@asynccontextmanager
async def opened_generations(
    config: Config, shared_state: SharedState
) -> AsyncIterator[Generations]:
    """Open the generations; the one made of ``config`` is in force.

    Raises:
        UserError: something that ``config`` names cannot be used.
    """
    generations = Generations(shared_state)
    try:
        generations.begin(await generations.open(config))
        yield generations
    finally:
        await generations.close()
