"""The content of the ledger as plain values: figures, pulls, images, fills.

Times are Unix seconds, sizes are bytes.  Independent of the database and of the presentation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from mirror.trouble import Problem

#: The periods of the charts.
HOURS: Final = 24
DAYS: Final = 30
#: Results of requests that were answered with content without a separate download.
_SPARED: Final = frozenset({"hit", "revalidated", "stale", "coalesced"})
_FRUITLESS: Final = frozenset({"negative", "denied", "error"})


@dataclass(frozen=True, slots=True)
class Figures:
    """The number of requests by result (see ``pull.outcome``), and the bytes of bodies."""

    requests: Mapping[str, int] = field(default_factory=dict)
    served_bytes: int = 0
    upstream_bytes: int = 0

    @property
    def answered(self) -> int:
        """The number of requests that were answered with content."""
        return sum(n for result, n in self.requests.items() if result not in _FRUITLESS)

    @property
    def spared(self) -> int:
        """The number of answered requests that needed no separate download."""
        return sum(n for result, n in self.requests.items() if result in _SPARED)

    @property
    def hit_rate(self) -> float | None:
        """``spared`` divided by ``answered``; None before the first request."""
        return self.spared / self.answered if self.answered else None

    @property
    def saved_bytes(self) -> int:
        """Bytes served minus bytes received from upstream; 0 if more were received (warming)."""
        return max(0, self.served_bytes - self.upstream_bytes)

    @property
    def failed(self) -> int:
        """The number of requests that were answered with an error."""
        return sum(n for result, n in self.requests.items() if result in _FRUITLESS)

    def __add__(self, other: "Figures") -> "Figures":
        requests = {
            result: self.requests.get(result, 0) + other.requests.get(result, 0)
            for result in {**self.requests, **other.requests}
        }
        served = self.served_bytes + other.served_bytes
        return Figures(requests, served, self.upstream_bytes + other.upstream_bytes)


@dataclass(frozen=True, slots=True)
class UpstreamAccount:
    """One upstream: its figures in total and for today, and its last response.

    ``code`` is the status of the last response, ``error`` if the request failed, empty before the
    first request.  ``allowed`` and ``remaining`` are the rate limit in pulls, None if unknown.
    """

    name: str
    total: Figures
    today: Figures
    code: str = ""
    answered_at: float | None = None
    allowed: float | None = None
    remaining: float | None = None

    @property
    def up(self) -> bool | None:
        """Whether the last request succeeded (no error, no 5xx); None before the first."""
        if not self.code:
            return None
        return self.code != "error" and not self.code.startswith("5")


@dataclass(frozen=True, slots=True)
class Pull:
    """The transfer of one image to one client without a longer pause (see ``stats.sessions``).

    ``times`` is the number of pulls in this period; ``result`` is the worst result;
    ``missed_bytes`` is the part of ``sent_bytes`` that was downloaded for this client.
    """

    upstream: str
    repository: str
    reference: str
    client: str
    started: float
    seconds: float
    times: int
    result: str
    sent_bytes: int
    missed_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A pull that failed ``times`` times; ``client`` is the common name of the program."""

    upstream: str
    repository: str
    reference: str
    client: str
    result: str
    reason: str
    times: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Image:
    """A pulled image; ``digest`` and ``size`` refer to the platform that was pulled last."""

    upstream: str
    repository: str
    reference: str
    pulls: int
    last: float
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Filling:
    """A running download; ``total`` is None if unknown, ``rate`` is in bytes per second."""

    digest: str
    upstream: str
    repository: str
    length: int
    total: int | None
    rate: float
    waiting: int


@dataclass(frozen=True, slots=True)
class Replica:
    """A mirror of a cluster; ``here``: the one that this process belongs to.

    ``problem`` is the reason why it gives no figures, None if it does.  ``started`` is its start
    (Unix seconds), ``problems`` the number of its own troubles.
    """

    address: str
    here: bool = False
    version: str = ""
    started: float = 0.0
    total: Figures = field(default_factory=Figures)
    today: Figures = field(default_factory=Figures)
    cache_bytes: int = 0
    max_bytes: int = 0
    objects: int = 0
    problems: int = 0
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class StatsReport:
    """The content of a ledger; ``since`` is its creation time, None if the ledger is missing.

    ``problems`` are those of all processes.  ``trouble`` is the reason why the ledger cannot be
    read or written, empty if it can.
    """

    since: float | None = None
    upstreams: tuple[UpstreamAccount, ...] = ()
    recent: tuple[Pull, ...] = ()
    most_pulled: tuple[Image, ...] = ()
    largest: tuple[Image, ...] = ()
    longest_unused: tuple[Image, ...] = ()
    fills: tuple[Filling, ...] = ()
    failures: tuple[Failure, ...] = ()
    problems: tuple[Problem, ...] = ()
    trouble: str = ""

    @property
    def total(self) -> Figures:
        """The figures of all upstreams since the ledger was created."""
        return sum((each.total for each in self.upstreams), Figures())

    @property
    def today(self) -> Figures:
        """The figures of all upstreams since midnight."""
        return sum((each.today for each in self.upstreams), Figures())


@dataclass(frozen=True, slots=True)
class History:
    """The figures of each period, by upstream; periods without requests have no entry.

    ``hours`` have the number of the hour of the Unix time as key, ``days`` the local date.
    """

    hours: Mapping[int, Mapping[str, Figures]] = field(default_factory=dict)
    days: Mapping[str, Mapping[str, Figures]] = field(default_factory=dict)


def last_days(now: float) -> Sequence[str]:
    """Return the local dates of the last ``DAYS`` days, today last."""
    today = datetime.fromtimestamp(now).astimezone().date()
    return [(today - timedelta(before)).isoformat() for before in range(DAYS - 1, -1, -1)]
