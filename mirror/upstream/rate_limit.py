"""Rate limits of an upstream: after a 429 no such request is sent until its Retry-After is over.

A server counts its kinds of requests apart: Docker Hub limits GET of manifests only, and neither
HEAD, nor blobs, nor its token service, nor the storage that it redirects to.

Several mirrors with the same login (or none) are limited together, so they tell each other.

The log has one line when a limit is reached, and no other until such a request succeeds again.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Final

from mirror.lru import Lru
from mirror.trouble import Problem, Trouble
from mirror.ttl_cache import SharedValues
from mirror.upstream.errors import RateLimitedError

_log = logging.getLogger(__name__)
_DEFAULT_SECONDS: Final = 30.0  # Docker Hub's abuse limit answers 429 without Retry-After
_MAX_SECONDS: Final = 3600.0
_LIMITED: Final = 429
_DURATION: Final = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,9})?)\s?([nuµm]?s)?")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
#: Words about a limit; no name of a repository or tag, which the message may repeat, matches.
_WORDS: Final = re.compile(
    r'"code"\s*:\s*"TOOMANYREQUESTS"|too many requests|rate limit|rate exceeded', re.IGNORECASE
)
_AGAIN: Final = re.compile(r"retry.after\W{1,4}([0-9.]{1,20} ?[nuµm]?s?)\b", re.IGNORECASE)
_MAX_PAUSES: Final = 256  # storage with changing host names
#: How long it counts that no other mirror has had a 429, in seconds.
_LEARN_SECONDS: Final = 1.0
_MARK_BYTES: Final = 8


class RateLimits:
    """The pauses of one client of an upstream, by server, kind and method of the request."""

    def __init__(
        self,
        upstream: str,
        advice: str | None = None,
        shared: SharedValues[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``advice``: what to do about a limit, for the log; None: do not log limits.

        ``shared``: a random mark of each pause that a 429 began, for as long as the pause lasts.
        """
        self._upstream = upstream
        self._shared = shared
        self._clock = clock
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

    async def learn(self, server: str, kind: str, method: str) -> float:
        """Start the pause if another mirror had a 429, and return its seconds; else 0.

        This asks the other mirrors once a second at most.
        """
        if self._shared is None:
            return 0.0
        pause = self._pause(server, kind, method)
        async with pause.learning:
            if pause.lasts or self._clock() < pause.learn_at:
                return 0.0
            found = await self._shared.lookup(f"{server} {kind} {method}")
            pause.learn_at = self._clock() + _LEARN_SECONDS
            error = None if found is None or pause.lasts else pause.learn(*found)
        if error is None:
            return 0.0
        self._tell(pause, error)
        return error.retry_after

    async def close(
        self, server: str, kind: str, method: str, retry_after: str, date: str
    ) -> RateLimitedError:
        """Start the pause after a 429; see :meth:`RateLimitPause.close`."""
        pause = self._pause(server, kind, method)
        error = pause.close(retry_after, date)
        self._tell(pause, error)
        if self._shared is not None and error.retry_after >= _LEARN_SECONDS:
            await self._shared.put(f"{server} {kind} {method}", pause.mark, error.retry_after)
        return error

    def _pause(self, server: str, kind: str, method: str) -> "RateLimitPause":
        pause = self._pauses.get((server, kind, method))
        if pause is None:
            text = f"{server} answers 429: too many requests ({method} {kind})"
            pause = RateLimitPause(self._upstream, text, self._clock)
            self._pauses.put((server, kind, method), pause)
        return pause

    def _tell(self, pause: "RateLimitPause", error: RateLimitedError) -> None:
        """Log the begin of a pause."""
        ends = time.time() + error.retry_after
        if self.own and pause.trouble.met(self._problem(error, ends)):
            until = time.strftime("%H:%M:%S", time.gmtime(ends))
            _log.warning(
                "%s; rate limited until %s UTC or later, and not asked before; cached images are "
                "still served%s",
                *(error, until, self._advice),
            )

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
        self.learning = asyncio.Lock()
        self.learn_at = 0.0
        self.mark = ""

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
        seconds = seconds_of(retry_after, date)
        wait = min(_DEFAULT_SECONDS if seconds is None else seconds, _MAX_SECONDS)
        return self._begin(secrets.token_hex(_MARK_BYTES), wait)

    def learn(self, mark: str, seconds: float) -> RateLimitedError | None:
        """Start the pause of another mirror; return the error to raise, None if it was known.

        A known one is over, however long its mark stays in the shared state.
        """
        return None if mark == self.mark else self._begin(mark, min(seconds, _MAX_SECONDS))

    def _begin(self, mark: str, seconds: float) -> RateLimitedError:
        self.mark = mark
        self._closed_until = self._clock() + seconds
        return self._error(seconds)

    def _error(self, seconds: float) -> RateLimitedError:
        return RateLimitedError(self._upstream, self._message, seconds)


def stated_limit(status: int, retry_after: str | None, body: bytes) -> str | None:
    """Return when an answer says to ask again, empty if it does not say; None if it is no limit.

    Some registries answer 403 to too many requests; ghcr.io tells the time in its message only.
    """
    if retry_after is not None:
        return retry_after
    text = re.sub(r"\\u00b5|\\u03bc|\u03bc", "µ", body.decode("utf-8", "replace"))
    if status != _LIMITED and not _WORDS.search(text):
        return None
    found = _AGAIN.search(text)
    return "" if found is None else found[1]


def seconds_of(retry_after: str, date: str) -> float | None:
    """Return Retry-After in seconds from now (RFC 9110, 10.2.3), None if it is unusable.

    A timestamp is compared with ``date``, from the same clock: the mirror's clock may differ.  Some
    servers write a fraction, or a duration as Go does.
    """
    found = _DURATION.fullmatch(retry_after.strip())
    if found is not None:
        return float(found[1]) * _UNITS[found[2] or "s"]
    try:
        return max(_timestamp(retry_after) - (_timestamp(date) if date else time.time()), 0.0)
    except (ValueError, OverflowError):
        return None


def _timestamp(moment: str) -> float:
    return parsedate_to_datetime(moment).timestamp()
