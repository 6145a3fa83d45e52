"""Circuit breaker: one client waits for the time-out of a dead upstream, the others fail at once.

One object that is slow or malformed says little about its server.  So a server that timed out is
asked for ``/v2/`` before the breaker opens; other requests wait for that answer.  Failures without
a time-out open it if they are of several objects.

An open breaker raises the last error again.  A background probe checks whether upstream is back,
so that no client request is used for that.

The log says when a server stops answering, or answers only errors of its own (5xx), and when it
answers again.  Errors do not open the breaker.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.trouble import Problem, Trouble
from mirror.upstream.errors import TimedOutError, UnreachableError, UpstreamError

_log = logging.getLogger(__name__)
_FAILURES: Final = 3  # the number of objects whose requests failed, without an answer in between
_FAILURES_OF_ONE: Final = 8  # errors that are enough if all are of one object
_SERVER_ERROR: Final = 500
_FIRST_PROBE_SECONDS: Final = 0.5
_MAX_PROBE_SECONDS: Final = 30.0


class Breaker:
    """The circuit breaker of one server."""

    def __init__(
        self,
        server: str,
        probe: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``server`` is its name in the log; ``probe`` raises UpstreamError while it is down."""
        self._server = server
        self._probe = probe
        self._sleep = sleep
        self._failed: set[str] = set()
        self._error: UpstreamError | None = None
        self._probing: asyncio.Task[None] | None = None
        self._judged = asyncio.Event()  # whether the running probe has had an answer
        self._judged.set()
        self._trouble = Trouble()
        self._errors: list[str] = []  # objects answered with 5xx, without another answer in between
        self._stopped = False

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
        if self._stopped:
            return
        if isinstance(error, UnreachableError):
            self._down(error)
        if isinstance(error, TimedOutError):
            if self._probing is None:
                self._judged.clear()
                self._start(0.0)
            return
        self._failed.add(thing)
        if len(self._failed) >= _FAILURES and self._probing is None:
            self._error = error
            self._down(error)
            self._start(_FIRST_PROBE_SECONDS)

    def answered(self, status: int = 200, thing: str = "") -> None:
        """Note that upstream answered a request for ``thing``."""
        self._failed.clear()
        if status >= _SERVER_ERROR:
            self._errors = [*self._errors, thing][-_FAILURES_OF_ONE:]
            # HEAD and GET of one object that a sound server cannot read are two errors.
            enough = _FAILURES if len(set(self._errors)) > 1 else _FAILURES_OF_ONE
            if len(self._errors) >= enough:
                self._errs(status)
            return
        self._errors = []
        seconds = self._trouble.over()
        if seconds is not None:
            _log.warning("%s answers again, after %.0f s", self._server, seconds)

    @property
    def problem(self) -> Problem | None:
        """The trouble that lasts, None if the server answers."""
        return self._trouble.problem

    def stop(self) -> None:
        """Stop probing, for good."""
        self._stopped = True
        if self._probing is not None:
            self._probing.cancel()
        self._judged.set()  # also if the probe had not begun

    async def close(self) -> None:
        """Stop probing, and wait until the probe has ended."""
        self.stop()
        if self._probing is not None:
            await asyncio.gather(self._probing, return_exceptions=True)

    def _down(self, error: UpstreamError) -> None:
        remedy = f"{error.remedy}; cached images are still served"
        if self._trouble.met(Problem(f"{self._server} does not answer", error.message, remedy)):
            _log.warning(
                "%s does not answer: %s; cached images are still served, and the mirror goes on "
                "asking: %s",
                *(self._server, error.message, error.remedy),
            )

    def _errs(self, status: int) -> None:
        remedy = "see the registry's own log or status page; cached images are still served"
        title = f"{self._server} answers {status}"
        if self._trouble.met(
            Problem(title, f"its last {len(self._errors)} answers were errors", remedy)
        ):
            _log.warning("%s to each request: %s", title, remedy)

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
                    self._down(error)
                    self._judged.set()
                else:
                    self.answered()
                    return
        finally:
            self._error, self._probing = None, None
            self._failed.clear()
            self._judged.set()
