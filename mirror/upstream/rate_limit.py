"""Rate limits of an upstream: after a 429 no such request is sent until its Retry-After is over.

A server counts its kinds of requests apart: Docker Hub limits GET of manifests only, and neither
HEAD, nor blobs, nor its token service, nor the storage that it redirects to.

The log has one line when a limit is reached, and no other until such a request succeeds again.
"""

import logging
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Final

from mirror.lru import Lru
from mirror.trouble import Problem, Trouble
from mirror.upstream.errors import RateLimitedError

_log = logging.getLogger(__name__)
_DEFAULT_SECONDS: Final = 30.0  # Docker Hub's abuse limit answers 429 without Retry-After
_MAX_SECONDS: Final = 3600.0
_MAX_DIGITS: Final = 10
_MAX_PAUSES: Final = 256  # storage with changing host names


class RateLimits:
    """The pauses of one client of an upstream, by server, kind and method of the request."""

    def __init__(self, upstream: str, advice: str | None = None) -> None:
        """``advice``: what to do about a limit, for the log; None: do not log limits."""
        self._upstream = upstream
        self._advice = advice
        self.own = advice is not None  # the limit of the mirror, not of a client
        self._pauses: Lru[tuple[str, str, str], RateLimitPause] = Lru(_MAX_PAUSES)

    def check(self, server: str, kind: str, method: str) -> None:
        """Return if a request may be sent to a server.

        Raises:
            RateLimitedError: the server answered 429 and its Retry-After is not over.
        """
        pause = self._pauses.get((server, kind, method))
        if pause is not None:
            pause.check()

    def close(
        self, server: str, kind: str, method: str, retry_after: str, date: str
    ) -> RateLimitedError:
        """Start the pause after a 429; see :meth:`RateLimitPause.close`."""
        key = (server, kind, method)
        pause = self._pauses.get(key)
        if pause is None:
            text = f"{server} answers 429: too many requests ({method} {kind})"
            pause = RateLimitPause(self._upstream, text)
            self._pauses.put(key, pause)
        error = pause.close(retry_after, date)
        ends = time.time() + error.retry_after
        if self.own and pause.trouble.met(self._problem(error, ends)):
            until = time.strftime("%H:%M:%S", time.gmtime(ends))
            _log.warning(
                "%s; rate limited until %s UTC or later, and not asked before; cached images are "
                "still served%s",
                *(error, until, self._advice),
            )
        return error

    def passed(self, server: str, kind: str, method: str) -> None:
        """Note that a server has answered such a request: it is not limited any more."""
        pause = self._pauses.get((server, kind, method))
        if pause is not None:
            pause.trouble.over()

    def problems(self) -> Iterator[Problem]:
        """Yield the limits that still hold."""
        for key in self._pauses:
            pause = self._pauses.get(key)
            if pause is not None and pause.lasts and pause.trouble.problem is not None:
                yield pause.trouble.problem

    def _problem(self, error: RateLimitedError, ends: float) -> Problem:
        advice = (self._advice or "").removeprefix("; ")
        remedy = f"cached images are still served{f'; {advice}' if advice else ''}"
        return Problem(f"{self._upstream} limits requests", error.message, remedy, ends)


class RateLimitPause:
    """The pause of requests of one kind to one server."""

    def __init__(
        self, upstream: str, message: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._upstream = upstream
        self._message = message
        self._clock = clock
        self._closed_until = 0.0
        self.trouble = Trouble()

    @property
    def lasts(self) -> bool:
        """Whether no request is sent now."""
        return self._closed_until > self._clock()

    def check(self) -> None:
        """Return if requests may be sent.

        Raises:
            RateLimitedError: upstream answered 429 and its Retry-After is not over.
        """
        remaining = self._closed_until - self._clock()
        if remaining > 0:
            raise self._error(remaining)

    def close(self, retry_after: str, date: str = "") -> RateLimitedError:
        """Start the pause after a 429; return the error to raise.

        Args:
            retry_after: the Retry-After field as received.
            date: the Date field as received.
        """
        seconds = _seconds_of(retry_after, date)
        wait = min(_DEFAULT_SECONDS if seconds is None else seconds, _MAX_SECONDS)
        self._closed_until = self._clock() + wait
        return self._error(wait)

    def _error(self, seconds: float) -> RateLimitedError:
        return RateLimitedError(self._upstream, self._message, seconds)


def _seconds_of(retry_after: str, date: str) -> float | None:
    """Return Retry-After in seconds from now (RFC 9110, 10.2.3), None if it is unusable.

    A timestamp is compared with ``date``, from the same clock: the mirror's clock may differ.
    """
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < _MAX_DIGITS:
        return float(retry_after)
    try:
        return max(_timestamp(retry_after) - _timestamp(date), 0.0)
    except (ValueError, OverflowError):
        return None


def _timestamp(moment: str) -> float:
    return parsedate_to_datetime(moment).timestamp()
