"""What the ledger says, as plain values: figures, pulls, images, fills.

Times are Unix seconds, sizes bytes.  Knows neither the database nor who shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: Results of requests that are answered with content without a download of their own.
_SPARED: Final = frozenset({"hit", "revalidated", "stale", "coalesced"})
_FRUITLESS: Final = frozenset({"negative", "denied", "error"})


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests by result (see ``pull.outcome``), and bytes of bodies."""

    requests: Mapping[str, int] = field(default_factory=dict)
    served_bytes: int = 0
    upstream_bytes: int = 0

    @property
    def answered(self) -> int:
        """Requests that were answered with content."""
        return sum(n for result, n in self.requests.items() if result not in _FRUITLESS)

    @property
    def spared(self) -> int:
        """Those of them that needed no download of their own."""
        return sum(n for result, n in self.requests.items() if result in _SPARED)

    @property
    def hit_rate(self) -> float | None:
        """The share of the answered that was spared, None before the first."""
        return self.spared / self.answered if self.answered else None

    @property
    def saved_bytes(self) -> int:
        """What upstream did not have to send."""
        return self.served_bytes - self.upstream_bytes

    def __add__(self, other: "Figures") -> "Figures":
        requests = {
            result: self.requests.get(result, 0) + other.requests.get(result, 0)
            for result in {**self.requests, **other.requests}
        }
        served = self.served_bytes + other.served_bytes
        return Figures(requests, served, self.upstream_bytes + other.upstream_bytes)


@dataclass(frozen=True, slots=True)
class UpstreamAccount:
    """One upstream: its figures in all and today, and what it last said.

    ``code`` is the status of its last answer, ``error`` where there was none, empty where it was
    never asked; ``allowed`` and ``remaining`` are its rate limit, None where it told of none.
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
        """Whether its last answer was one, None where it was never asked."""
        if not self.code:
            return None
        return self.code != "error" and not self.code.startswith("5")


@dataclass(frozen=True, slots=True)
class Pull:
    """What one client got of one image without a longer pause (see ``store.visits``).

    ``times`` is how often it asked for the image meanwhile; ``result`` the worst that happened;
    ``missed_bytes`` are those of ``sent_bytes`` that were downloaded for it.
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
class Image:
    """An image that was pulled; ``digest`` and ``size`` are of the platform pulled last."""

    upstream: str
    repository: str
    reference: str
    pulls: int
    last: float
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Filling:
    """A download under way; ``total`` is None where upstream did not say, ``rate`` bytes/s."""

    digest: str
    upstream: str
    repository: str
    length: int
    total: int | None
    rate: float
    waiting: int


@dataclass(frozen=True, slots=True)
class StatsReport:
    """The whole ledger; ``since`` is when it was begun, None where there is none.

    ``trouble`` says why it is not kept at the moment, empty where all is well.
    """

    since: float | None = None
    upstreams: tuple[UpstreamAccount, ...] = ()
    days: tuple[tuple[str, Figures], ...] = ()
    recent: tuple[Pull, ...] = ()
    most_pulled: tuple[Image, ...] = ()
    largest: tuple[Image, ...] = ()
    longest_unused: tuple[Image, ...] = ()
    fills: tuple[Filling, ...] = ()
    trouble: str = ""

    @property
    def total(self) -> Figures:
        """All upstreams together, since the ledger was begun."""
        return sum((each.total for each in self.upstreams), Figures())

    @property
    def today(self) -> Figures:
        """All upstreams together, since midnight."""
        return sum((each.today for each in self.upstreams), Figures())
