"""One request and its answer, as metrics, log and Cache-Status want to know it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from mirror.pull.outcome import Outcome


@dataclass(slots=True)
class Exchange:
    """Filled in while a request is answered; times are monotonic seconds, sizes bytes."""

    started: float
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    kind: str = ""
    outcome: Outcome | None = None
    detail: str = ""
    status: int = 0
    sent_bytes: int = 0
    first_byte: float | None = None
    whole: bool = True

    def answered(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The answer's headers leave now."""
        if self.first_byte is None:
            self.first_byte = clock()


@dataclass(frozen=True, slots=True)
class Ending:
    """An exchange when it is over."""

    exchange: Exchange
    method: str
    path: str
    client: str
    agent: str
    seconds: float


class Observer(Protocol):
    """Who wants to know of requests."""

    def request_ended(self, ending: Ending) -> None:
        """A request was answered, or its connection is gone."""


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)
