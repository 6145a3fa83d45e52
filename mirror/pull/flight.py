"""One call per key however many ask (groupcache's singleflight, for asyncio)."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from mirror.spans import Span, current, entered

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """Calls under way by key.

    A call belongs to nobody who waits for it: a client that leaves cancels its own wait only.
    """

    def __init__(self, what: str) -> None:
        """Each asks for a ``what``."""
        self._what = what
        self._flying: dict[K, asyncio.Task[V]] = {}
        self._spans: dict[K, Span] = {}

    async def join(self, key: K, call: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """The result of the call for ``key``, and whether this caller led it.

        Raises:
            whatever the call raised, to everybody who waits.
        """
        task = self._flying.get(key)
        led = task is None
        if task is None:
            span = current().child(f"flight {self._what}")
            task = asyncio.create_task(_run(call, span), name=f"flight {key}")
            self._flying[key], self._spans[key] = task, span
            task.add_done_callback(lambda done: self._landed(key, done))
        else:
            current().link(self._spans[key])
        return await asyncio.shield(task), led

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del self._flying[key], self._spans[key]
        if not task.cancelled():
            task.exception()  # everybody may have left: then nobody else looks at it

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(call: Callable[[], Awaitable[V]], span: Span) -> V:
    with entered(span):
        return await call()
