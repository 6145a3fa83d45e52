"""Keeps quiet while upstream asks for quiet: after a 429 nothing is sent until it is over."""

import time
from collections.abc import Callable
from typing import Final

from mirror.upstream.errors import RateLimitedError

_DEFAULT_SECONDS: Final = 30.0  # Docker Hub's abuse limit answers 429 without Retry-After
_MAX_SECONDS: Final = 3600.0


class Gate:
    """Whether one upstream may be asked right now."""

    def __init__(self, upstream: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._clock = clock
        self._closed_until = 0.0

    def check(self) -> None:
        """Pass, or not.

        Raises:
            RateLimitedError: upstream said 429 and the time it asked for is not over.
        """
        remaining = self._closed_until - self._clock()
        if remaining > 0:
            raise self._error(remaining)

    def close(self, seconds: float | None) -> RateLimitedError:
        """Note a 429 with its Retry-After in seconds; return the error to raise."""
        wait = min(_DEFAULT_SECONDS if seconds is None else seconds, _MAX_SECONDS)
        self._closed_until = self._clock() + wait
        return self._error(wait)

    def _error(self, seconds: float) -> RateLimitedError:
        return RateLimitedError(self._upstream, "limits how often it may be asked", seconds)
