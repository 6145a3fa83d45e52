"""One call per key for all concurrent callers (groupcache's singleflight, for asyncio)."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from mirror.pull.policy import UNWANTED_QUESTIONS, UNWANTED_SECONDS
from mirror.spans import Span, current, entered

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[V]):
    """A running call, and how many callers wait for it."""

    def __init__(self, task: asyncio.Task[V], span: Span) -> None:
        self.task = task
        self.span = span
        self.waiting = 0


class SingleFlight(Generic[K, V]):
    """Running calls by key.

    A client that leaves cancels only its own wait, not the call.  A call without waiting callers
    continues for a moment, since clients come back after a time-out of their own.  If many calls
    continue like that already, it is cancelled at once.
    """

    def __init__(self, what: str) -> None:
        """``what`` names the subject of the calls, for spans."""
        self._what = what
        self._flying: dict[K, _Flight[V]] = {}
        self._left: dict[K, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[V]] = set()

    async def join(self, key: K, call: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """Return the result of the call for ``key``, and whether this caller led it.

        An exception of the call is raised in every caller that waits.
        """
        flight = self._flying.get(key)
        led = flight is None
        if flight is None:
            flight = self._begin(key, call)
        else:
            current().link(flight.span)
            self._keep(key)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), led
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._leave(key)

    def _begin(self, key: K, call: Callable[[], Awaitable[V]]) -> _Flight[V]:
        span = current().child(f"flight {self._what}")
        task = asyncio.create_task(_run(call, span), name=f"flight {key}")
        flight = self._flying[key] = _Flight(task, span)
        task.add_done_callback(lambda done: self._landed(key, done))
        return flight

    def _leave(self, key: K) -> None:
        if len(self._left) >= UNWANTED_QUESTIONS:
            self._end(key)
        else:
            loop = asyncio.get_running_loop()
            self._left[key] = loop.call_later(UNWANTED_SECONDS, self._end, key)

    def _keep(self, key: K) -> None:
        timer = self._left.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _end(self, key: K) -> None:
        """Cancel a call; the next caller begins a new one."""
        self._keep(key)
        task = self._flying.pop(key).task
        self._ending.add(task)
        task.cancel()

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        if task in self._ending:
            self._ending.remove(task)
        else:
            self._keep(key)
            del self._flying[key]
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all callers may have left

    async def close(self) -> None:
        """Cancel all calls."""
        for key in list(self._flying):
            self._end(key)
        await asyncio.gather(*self._ending, return_exceptions=True)


async def _run(call: Callable[[], Awaitable[V]], span: Span) -> V:
    with entered(span):
        return await call()
