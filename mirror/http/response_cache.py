"""Complete responses in memory, keyed by the parsed request.

The ordinary handlers answer first; when the same request comes again, their response is repeated
without them.  The key is made of the parsed request, for storing and for looking up, so only the
parser decides where a request begins and ends.  A response is dropped when it expires, when its
object leaves the cache, or when a limit of the cache is exceeded.
"""

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from aiohttp import HttpVersion

from mirror.oci.digest import Digest

_MOST_ANSWERS: Final = 8192
_MOST_FILES: Final = 512
_MOST_BYTES: Final = 32 * 1024 * 1024
_FIELD_BYTES: Final = 160  # memory per header field in addition to its bytes
_USE_SECONDS: Final = 1.0  # uses are ordered this exactly: to note each costs a tenth of a replay

#: Larger files are not cached: sending takes much longer than the lookup, and needs a thread.
SMALL_FILE_BYTES: Final = 128 * 1024


#: Larger requests are not cached: clients of a registry do not repeat such requests.
MOST_REQUEST_BYTES: Final = 4096


class HotKey(NamedTuple):
    """Everything that determines the response to a request without a body.

    ``upstream`` and ``proxied`` come from the connection: the same bytes mean another request
    inside TLS for a registry, and from a trusted proxy.
    """

    upstream: str
    proxied: bool
    method: str
    target: str
    version: HttpVersion
    fields: tuple[tuple[bytes, bytes], ...]

    @property
    def size(self) -> int:
        """Length in bytes of the request's target and header fields."""
        return len(self.target) + sum(len(name) + len(value) for name, value in self.fields)

    @property
    def weight(self) -> int:
        """Approximate memory in bytes."""
        return self.size + _FIELD_BYTES * (len(self.fields) + 1)


@dataclass(slots=True)
class CachedResponse:
    """A complete response; the value of the Date field goes between ``first`` and ``rest``.

    ``file`` is the descriptor of a body that is not in ``body``; the response cache closes it.
    ``until`` is when the response expires and ``used`` when it was used last (monotonic seconds).
    ``ended`` is called with the client's address and the seconds to the first byte.
    """

    first: bytes
    rest: bytes
    body: bytes
    file: int | None
    size: int
    until: float
    digest: Digest
    ended: Callable[[str, float], None]
    used: float = 0.0

    @property
    def weight(self) -> int:
        """Approximate memory in bytes."""
        return len(self.first) + len(self.rest) + len(self.body)


class ResponseCache:
    """Complete responses by request; the least recently used are dropped first."""

    def __init__(self, lifetime: float = math.inf) -> None:
        """Drop each response after at most ``lifetime`` seconds.

        Set ``lifetime`` if other processes can evict objects without notice.
        """
        self._lifetime = lifetime
        self._answers: OrderedDict[HotKey, CachedResponse] = OrderedDict()
        self._by_digest: dict[Digest, set[HotKey]] = {}
        self._bytes = 0
        self._files = 0
        self.epoch = 0  # changes when all responses are dropped: earlier ones must not be stored

    def get(self, request: HotKey, now: float) -> CachedResponse | None:
        """Return the response to a request; None if it is missing or expired."""
        answer = self._answers.get(request)
        if answer is None:
            return None
        if answer.until <= now:
            self._drop(request)
            return None
        if now - answer.used > _USE_SECONDS:
            answer.used = now
            self._answers.move_to_end(request)
        return answer

    def put(self, request: HotKey, answer: CachedResponse) -> None:
        """Store a response and drop the least recently used ones above the limits."""
        self._drop(request)
        if self._lifetime < math.inf:
            until = min(answer.until, time.monotonic() + self._lifetime)
            answer = replace(answer, until=until)
        self._answers[request] = answer
        self._by_digest.setdefault(answer.digest, set()).add(request)
        self._bytes += answer.weight + request.weight
        self._files += answer.file is not None
        while self._too_much():
            self._drop(next(iter(self._answers)))

    def forget(self, digest: Digest) -> None:
        """Drop all responses whose content is this object."""
        for request in list(self._by_digest.get(digest, ())):
            self._drop(request)

    def close(self) -> None:
        """Drop all responses, and those that are being computed."""
        self.epoch += 1
        for request in list(self._answers):
            self._drop(request)

    def _too_much(self) -> bool:
        return (
            len(self._answers) > _MOST_ANSWERS
            or self._files > _MOST_FILES
            or self._bytes > _MOST_BYTES
        )

    def _drop(self, request: HotKey) -> None:
        answer = self._answers.pop(request, None)
        if answer is None:
            return
        self._bytes -= answer.weight + request.weight
        requests = self._by_digest[answer.digest]
        requests.discard(request)
        if not requests:
            del self._by_digest[answer.digest]
        if answer.file is not None:
            self._files -= 1
            os.close(answer.file)
