"""A thread pool that starts all its threads at once, and an event loop that uses such a pool.

``ThreadPoolExecutor.submit`` queues the work first and starts a thread afterwards.  If the system
refuses the thread, ``submit`` fails, but the work still runs later, when the caller may have
closed the files that the work uses.  Here ``submit`` never starts a thread.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar, TypeVarTuple

from mirror.user_error import UserError

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

#: For the resolver and ``asyncio.to_thread``; a name server that does not answer blocks a thread.
_LOOP_THREADS: Final = 8


class Threads(ThreadPoolExecutor):
    """An executor whose threads are started by the constructor."""

    def __init__(self, count: int, name: str) -> None:
        """Start ``count`` threads.

        Raises:
            UserError: the system refuses one of them; the others are ended then.
        """
        super().__init__(count, name)
        started = threading.Event()
        waiting: list[Future[bool]] = []
        try:
            # The threads started so far are all busy, so each submission starts another one.
            for _ in range(count):
                waiting.append(self.submit(started.wait))  # noqa: PERF401  # the error tells how many
        except (RuntimeError, MemoryError) as error:
            started.set()
            self.shutdown(cancel_futures=True)
            raise UserError(
                f"the system refuses thread {len(waiting) + 1} of {count} ({name}): raise the "
                "limit on threads (--pids-limit, TasksMax, ulimit -u) or on memory (ulimit -v)"
            ) from error
        started.set()
        for each in waiting:
            each.result()


async def run_in(threads: Executor, function: Callable[[], R]) -> R:
    """Return the result of ``function``, called in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, function)


async def opened_or_closed(opening: Coroutine[Any, Any, R], close: Callable[[R], object]) -> R:
    """Return the result of ``opening``; if the caller is cancelled first, ``close`` the result.

    A thread cannot be cancelled: the resource that it opens would stay open, with its lock.
    """

    def close_result(task: asyncio.Task[R]) -> None:
        if not task.cancelled() and task.exception() is None:
            close(task.result())

    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(close_result)
        raise


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's event loop with its own :class:`Threads` instead of the default executor."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self._own_threads = Threads(_LOOP_THREADS, "loop")
        except UserError:
            super().close()
            raise

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], R], *args: *Ts
    ) -> asyncio.Future[R]:
        """Use the loop's own threads if ``executor`` is None."""
        return super().run_in_executor(executor or self._own_threads, func, *args)

    def close(self) -> None:
        super().close()
        self._own_threads.shutdown()


def run(main: Coroutine[Any, Any, R]) -> R:
    """Like ``asyncio.run``, with a loop that never starts a thread while it runs.

    Raises:
        UserError: the system refuses the threads of the loop.
    """
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            return runner.run(main)
    finally:
        main.close()
