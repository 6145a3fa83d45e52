"""Whom requests are told to when they are over."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mirror.logs import AccessLog
from mirror.metrics import Metrics
from mirror.web.exchange import Ending


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells metrics and access log of every request."""

    metrics: Metrics
    log: AccessLog

    def request_ended(self, ending: Ending) -> None:
        """A request was answered, or its connection is gone."""
        self.metrics.request_ended(ending)
        self.log.request_ended(ending)

    def repeated(self, ending: Ending, used: Callable[[], None]) -> Callable[[str, float], None]:
        """What to tell of every repetition: the client, and seconds to the first byte."""
        count = self.metrics.repeated(ending.exchange)

        def ended(client: str, seconds: float) -> None:
            used()
            count(seconds)
            if self.log.wanted:
                self.log.request_ended(replace(ending, client=client, seconds=seconds))

        return ended
