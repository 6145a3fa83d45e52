"""Opening something in a thread for a caller who may leave before it is open."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


async def kept(opening: Coroutine[Any, Any, R], close: Callable[[R], object]) -> R:
    """The result of ``opening``, closed once it is there where the caller is cancelled first.

    A thread cannot be cancelled: what it opens for nobody would stay open, lock and all.
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
