"""Opens resources in a thread for callers that may be cancelled meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


async def kept(opening: Coroutine[Any, Any, R], close: Callable[[R], object]) -> R:
    """Return the result of ``opening``; if the caller is cancelled first, ``close`` the result.

    A thread cannot be cancelled: the resource that it opens would stay open, with its lock.
    """
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: _close(done, close))
        raise


def _close(task: asyncio.Task[R], close: Callable[[R], object]) -> None:
    if not task.cancelled() and task.exception() is None:
        close(task.result())
