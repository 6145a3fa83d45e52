"""One request and its answer: the facts for metrics, the access log and Cache-Status."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from mirror.http.forwarded import Origin
from mirror.oci.digest import Digest
from mirror.pull.outcome import Outcome
from mirror.store.interface import Manifest

#: Kinds of requests that are not pulls; they must not count in the hit rate.
NO_PULLS: Final = frozenset({"", "ping", "passed", "tunnel"})


@dataclass(slots=True)
class CacheableResponse:
    """The part of an answer that the response cache may store.

    ``until`` is when it expires (monotonic seconds).  The body is ``body`` or the first ``size``
    bytes of ``file``, a descriptor that this object owns.  Call ``used`` for every repetition.
    """

    digest: Digest
    until: float
    used: Callable[[], None]
    body: bytes = b""
    file: int | None = None
    size: int = 0

    def close(self) -> None:
        """Close the file, unless the response cache has taken it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


@dataclass(slots=True)
class Exchange:
    """Filled in while a request is answered; times are monotonic seconds, sizes bytes.

    ``connected`` (proxy mode) is the upstream whose registry the client addresses: the request's
    Authorization field is meant for that registry.  ``private``: the answer depends on the
    client's credentials, so it must not be shown to other clients.
    """

    started: float
    origin: Origin
    connected: str = ""
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    digest: str = ""  # of the manifest that the reference resolves to
    manifest: Manifest | None = None
    kind: str = ""
    outcome: Outcome | None = None
    detail: str = ""
    status: int = 0
    sent_bytes: int = 0
    first_byte: float | None = None
    whole: bool = True
    repeatable: bool = False  # the response cache may store the answer
    kept: CacheableResponse | None = None
    private: bool = False

    def set_outcome(self, outcome: Outcome, *, private: bool) -> None:
        """Record the outcome; a private answer is not cached."""
        self.outcome, self.private = outcome, private
        self.repeatable = self.repeatable and not private

    def more(self, count: int) -> None:
        """Add ``count`` bytes of the body to those sent."""
        self.sent_bytes += count

    def answered(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Record the time at which the answer's headers are sent; later calls change nothing."""
        if self.first_byte is None:
            self.first_byte = clock()


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """A finished exchange; ``seconds`` is its duration."""

    exchange: Exchange
    method: str
    path: str
    client: str
    agent: str
    seconds: float


class Observer(Protocol):
    """Receives an event for every request."""

    def request_ended(self, ending: AccessRecord) -> None:
        """Handle the end of a request: it was answered, or its connection was lost."""

    def repeated(
        self, ending: AccessRecord, used: Callable[[], None]
    ) -> Callable[[str, float], None]:
        """Return the function to call for every repetition of a cached response.

        Its arguments are the client's address and the seconds to the first byte.
        """


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)
