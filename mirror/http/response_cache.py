"""Finished answers, by the parsed request that each of them answers.

The ordinary handlers decide; when the same request comes again, their answer is repeated without
them.  The parser alone says where a request begins and ends: the key of an answer is made of what
was parsed, both when the answer is stored and when it is looked up.  An answer is dropped when it
is no longer fresh, when its object leaves the cache, or when there are too many.
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
_FIELD_BYTES: Final = 160  # of memory that a header field takes beside its bytes

#: Larger files take long enough that finding them is no matter, and go out in a thread.
SMALL_FILE_BYTES: Final = 128 * 1024


#: Larger requests are not remembered; no client of a registry sends them again and again.
MOST_REQUEST_BYTES: Final = 4096


class HotKey(NamedTuple):
    """All that decides the answer to a request without a body.

    ``upstream`` and ``proxied`` are those of the connection: from a trusted proxy, or inside TLS
    that is spoken for a registry, the same request means another one.
    """

    upstream: str
    proxied: bool
    method: str
    target: str
    version: HttpVersion
    fields: tuple[tuple[bytes, bytes], ...]

    @property
    def size(self) -> int:
        """Bytes of the request's target and header fields."""
        return len(self.target) + sum(len(name) + len(value) for name, value in self.fields)

    @property
    def weight(self) -> int:
        """Bytes of memory it takes, roughly."""
        return self.size + _FIELD_BYTES * (len(self.fields) + 1)


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """An answer in the parts it is sent in; the Date goes between ``first`` and ``rest``.

    ``file`` is the descriptor of a body that is not in ``body``, the table's to close; ``until``
    the time (monotonic seconds) up to which it may be given; ``ended`` is told of the client and
    of the seconds to the first byte.
    """

    first: bytes
    rest: bytes
    body: bytes
    file: int | None
    size: int
    until: float
    digest: Digest
    ended: Callable[[str, float], None]

    @property
    def weight(self) -> int:
        """Bytes of memory it takes, roughly."""
        return len(self.first) + len(self.rest) + len(self.body)


class ResponseCache:
    """The answers, the least recently used going first."""

    def __init__(self, lifetime: float = math.inf) -> None:
        """No answer is given for more than ``lifetime`` seconds: for where others evict unseen."""
        self._lifetime = lifetime
        self._answers: OrderedDict[HotKey, CachedResponse] = OrderedDict()
        self._by_digest: dict[Digest, set[HotKey]] = {}
        self._bytes = 0
        self._files = 0

    def get(self, request: HotKey, now: float) -> CachedResponse | None:
        """The answer to a request, None where there is none or it is no longer fresh."""
        answer = self._answers.get(request)
        if answer is None:
            return None
        if answer.until <= now:
            self._drop(request)
            return None
        self._answers.move_to_end(request)
        return answer

    def put(self, request: HotKey, answer: CachedResponse) -> None:
        """Keep an answer; what is too much goes."""
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
        """Drop all answers that give out an object."""
        for request in list(self._by_digest.get(digest, ())):
            self._drop(request)

    def close(self) -> None:
        """Drop all answers."""
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
