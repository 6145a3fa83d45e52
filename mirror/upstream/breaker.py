"""Circuit breaker: one client waits for the time-out of a dead upstream, the others fail at once.

An open breaker raises the last error again.  A background probe checks whether upstream is back,
so that no client request is used for that.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.upstream.errors import TimedOutError, UpstreamError

_FAILURES: Final = 3  # fast failures (connection refused) before it opens; a time-out opens at once
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
        self._failures = 0
        self._error: UpstreamError | None = None
        self._probing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Return if requests may be sent.

        Raises:
            UnavailableError, TimedOutError: the breaker is open; this is the last error.
        """
        if self._error is not None:
            raise type(self._error)(
                self._error.upstream, f"{self._error.message} (not asked again)"
            )

    def failed(self, error: UpstreamError) -> None:
        """Note that upstream could not be reached or did not start to answer in time."""
        self._failures += 1
        if isinstance(error, TimedOutError) or self._failures >= _FAILURES:
            self._open(error)

    def answered(self) -> None:
        """Note that upstream answered, with any status."""
        self._failures = 0

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    def _open(self, error: UpstreamError) -> None:
        if self._error is None:
            self._probing = asyncio.create_task(self._probe_until_back(), name="probe")
        self._error = error

    async def _probe_until_back(self) -> None:
        delay = _FIRST_PROBE_SECONDS
        while self._error is not None:
            await self._sleep(delay)
            delay = min(delay * 2, _MAX_PROBE_SECONDS)
            try:
                await self._probe()
            except UpstreamError as error:
                self._error = error
            else:
                self._error, self._failures = None, 0
