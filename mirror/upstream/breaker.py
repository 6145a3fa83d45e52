"""Circuit breaker: one client waits for the time-out of a dead upstream, the others fail at once.

One object that is slow or malformed says little about its server.  So a server that timed out is
asked for ``/v2/`` before the breaker opens; other requests wait for that answer.  Failures without
a time-out open it if they are of several objects.

An open breaker raises the last error again.  A background probe checks whether upstream is back,
so that no client request is used for that.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.upstream.errors import TimedOutError, UpstreamError

_FAILURES: Final = 3  # the number of objects whose requests failed, without an answer in between
_FIRST_PROBE_SECONDS: Final = 0.5
_MAX_PROBE_SECONDS: Final = 30.0


class Breaker:
    """The circuit breaker of one server."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``probe`` raises UpstreamError while upstream cannot be reached."""
        self._probe = probe
        self._sleep = sleep
        self._failed: set[str] = set()
        self._error: UpstreamError | None = None
        self._probing: asyncio.Task[None] | None = None
        self._judged = asyncio.Event()  # whether the running probe has had an answer
        self._judged.set()

    async def check(self) -> None:
        """Return if requests may be sent.

        Raises:
            UnavailableError, TimedOutError: the breaker is open; this is the last error.
        """
        await self._judged.wait()
        if self._error is not None:
            raise type(self._error)(
                self._error.upstream, f"{self._error.message} (not asked again)"
            )

    def failed(self, error: UpstreamError, thing: str) -> None:
        """Note that a request for ``thing`` had no answer, or none in time."""
        if isinstance(error, TimedOutError):
            if self._probing is None:
                self._judged.clear()
                self._start(0.0)
            return
        self._failed.add(thing)
        if len(self._failed) >= _FAILURES and self._probing is None:
            self._error = error
            self._start(_FIRST_PROBE_SECONDS)

    def answered(self) -> None:
        """Note that upstream answered, with any status."""
        self._failed.clear()

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        self._judged.set()  # also if the probe had not begun

    def _start(self, delay: float) -> None:
        self._probing = asyncio.create_task(self._probe_until_back(delay), name="probe")

    async def _probe_until_back(self, delay: float) -> None:
        try:
            while True:
                await self._sleep(delay)
                delay = min(max(delay * 2, _FIRST_PROBE_SECONDS), _MAX_PROBE_SECONDS)
                try:
                    await self._probe()
                except UpstreamError as error:
                    self._error = error
                    self._judged.set()
                else:
                    return
        finally:
            self._error, self._probing = None, None
            self._failed.clear()
            self._judged.set()
