"""One request and its answer, as metrics, log and Cache-Status want to know it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from mirror.http.forwarded import Origin
from mirror.oci.digest import Digest
from mirror.pull.outcome import Outcome
from mirror.store.local.manifests import Manifest

#: Kinds of requests that are no pulls, and would make a hit rate wrong.
NO_PULLS: Final = frozenset({"", "ping", "passed", "tunnel"})


@dataclass(slots=True)
class CacheableResponse:
    """What of an answer may be given again, until when (monotonic seconds), and what it is.

    The body is in ``body`` or is the ``size`` bytes of ``file``, a descriptor of its own; ``used``
    is to be called for each time.
    """

    digest: Digest
    until: float
    used: Callable[[], None]
    body: bytes = b""
    file: int | None = None
    size: int = 0

    def close(self) -> None:
        """Close the file; nobody kept it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


@dataclass(slots=True)
class Exchange:
    """Filled in while a request is answered; times are monotonic seconds, sizes bytes.

    ``connected`` is the upstream whose registry the client is connected to, as it believes (proxy
    mode): what it sends in Authorization is meant for that one.  ``private``: another client would
    not have been given this, nor may it hear of it.
    """

    started: float
    origin: Origin
    connected: str = ""
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    digest: str = ""  # of the manifest that the reference means
    manifest: Manifest | None = None
    kind: str = ""
    outcome: Outcome | None = None
    detail: str = ""
    status: int = 0
    sent_bytes: int = 0
    first_byte: float | None = None
    whole: bool = True
    repeatable: bool = False  # its answer may be kept
    kept: CacheableResponse | None = None
    private: bool = False

    def set_outcome(self, outcome: Outcome, *, private: bool) -> None:
        """There is an answer; what is private is never repeated to others."""
        self.outcome, self.private = outcome, private
        self.repeatable = self.repeatable and not private

    def more(self, count: int) -> None:
        """``count`` bytes of the body were sent."""
        self.sent_bytes += count

    def answered(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The answer's headers leave now."""
        if self.first_byte is None:
            self.first_byte = clock()


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """An exchange when it is over."""

    exchange: Exchange
    method: str
    path: str
    client: str
    agent: str
    seconds: float


class Observer(Protocol):
    """Who wants to know of requests."""

    def request_ended(self, ending: AccessRecord) -> None:
        """A request was answered, or its connection is gone."""

    def repeated(
        self, ending: AccessRecord, used: Callable[[], None]
    ) -> Callable[[str, float], None]:
        """What to tell of every repetition: the client, and seconds to the first byte."""


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)
