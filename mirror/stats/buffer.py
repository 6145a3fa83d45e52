"""The events of about one second, collected in memory until they are written to the ledger.

The event loop fills a buffer; the writer then owns it exclusively.  Bounded, so that a ledger
that cannot be written takes little memory.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_MOST_SESSIONS: Final = 2000
_MOST_REFERENCES: Final = 64  # per session: tags and digests of one repository
_MOST_REPEATS: Final = 10_000
_MOST_FAILURES: Final = 100

#: The results of a request, from best to worst.
_RESULTS: Final = (
    *("", "hit", "revalidated", "stale", "coalesced", "miss"),
    *("negative", "denied", "error"),
)
_MISSED: Final = "miss"
_FRUITLESS: Final = frozenset({"negative", "denied", "error"})


def worse(one: str, other: str) -> str:
    return max(one, other, key=_RESULTS.index)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """An answered request, possibly repeated; ``size`` is the body of one response in bytes.

    ``kind`` is manifest, blob, tags or referrers; ``agent`` is the common name of the client's
    program.  For a manifest, ``digest`` is the digest behind the reference, and ``content_bytes``
    the total size of its config and layers, 0 for an index.
    """

    upstream: str
    repository: str
    reference: str
    kind: str
    result: str
    agent: str
    size: int
    head: bool = False
    digest: str = ""
    content_bytes: int = 0

    @property
    def of_a_pull(self) -> bool:
        """Whether the request may be part of a pull; a failed manifest request is not."""
        if self.kind == "manifest":
            return self.result not in _FRUITLESS
        return self.kind == "blob" and self.upstream != ""


@dataclass(frozen=True, slots=True)
class PullClient:
    """A client at one repository."""

    address: str
    agent: str
    upstream: str
    repository: str


@dataclass(slots=True)
class Repeats:
    """A number of equal events, and the times of the first and the last (Unix seconds)."""

    count: int
    first: float
    last: float


@dataclass(slots=True)
class Asked:
    """The number of requests for a manifest by one reference, and the manifest found."""

    heads: int = 0
    gets: int = 0
    digest: str = ""
    content_bytes: int = 0

    def absorb(self, later: "Asked") -> None:
        self.heads += later.heads
        self.gets += later.gets
        self.digest = later.digest or self.digest
        self.content_bytes = later.content_bytes or self.content_bytes


@dataclass(slots=True)
class Session:
    """The requests of a client to a repository, from ``first`` to ``last`` (Unix seconds)."""

    first: float
    last: float
    asked: dict[str, Asked] = field(default_factory=dict)
    sent_bytes: int = 0
    missed_bytes: int = 0
    result: str = ""

    def note(self, request: Request, count: int) -> None:
        """Add a request that was answered ``count`` times."""
        if request.kind == "manifest":
            heads, gets = (count, 0) if request.head else (0, count)
            asked = Asked(heads, gets, request.digest, request.content_bytes)
            self._ask(request.reference, asked)
        self.sent_bytes += request.size * count
        self.missed_bytes += request.size * count if request.result == _MISSED else 0
        self.result = worse(self.result, request.result)

    def _ask(self, reference: str, more: Asked) -> None:
        if reference in self.asked or len(self.asked) < _MOST_REFERENCES:
            self.asked.setdefault(reference, Asked()).absorb(more)

    def absorb(self, later: "Session") -> None:
        self.first, self.last = min(self.first, later.first), max(self.last, later.last)
        for reference, more in later.asked.items():
            self._ask(reference, more)
        self.sent_bytes += later.sent_bytes
        self.missed_bytes += later.missed_bytes
        self.result = worse(self.result, later.result)


class Failed(NamedTuple):
    """A pull that failed, and why; ``client`` is the common name of the client's program."""

    upstream: str
    repository: str
    reference: str
    client: str
    result: str
    reason: str


class StatsBuffer:
    """The events to write next, counted for ``day`` and ``hour`` (of the Unix time)."""

    def __init__(self, day: str, hour: int) -> None:
        self._repeats: dict[tuple[Request, str], Repeats] = {}
        # By day, hour, upstream, name.
        self.figures: Counter[tuple[str, int, str, str]] = Counter()
        self.failures: dict[Failed, Repeats] = {}
        self.sessions: dict[PullClient, Session] = {}
        # Of each upstream: the status of the last response or ``error``, and its time.
        self.answers: dict[str, tuple[str, float]] = {}
        # Of each upstream: the pulls that it allows, and those that remain.
        self.limits: dict[str, tuple[float, float]] = {}
        self._when = day, hour

    def __bool__(self) -> bool:
        requests = self._repeats, self.figures, self.sessions, self.failures
        return any((*requests, self.answers, self.limits))

    def add(
        self, request: Request, client: str, began: float, ended: float, count: int = 1
    ) -> None:
        """Record a request, answered ``count`` times between two times (Unix seconds)."""
        self.figures[*self._when, request.upstream, request.result] += count
        self.figures[*self._when, request.upstream, "served_bytes"] += request.size * count
        if not request.of_a_pull:
            return
        pull_client = PullClient(client, request.agent, request.upstream, request.repository)
        session = self.sessions.get(pull_client)
        if session is None:
            if len(self.sessions) >= _MOST_SESSIONS:
                return
            session = self.sessions[pull_client] = Session(began, ended)
        session.first, session.last = min(session.first, began), max(session.last, ended)
        session.note(request, count)

    def got(self, upstream: str, count: int) -> None:
        self.figures[*self._when, upstream, "upstream_bytes"] += count

    def failed(self, failure: Failed, now: float) -> None:
        self._fail(failure, Repeats(1, now, now))

    def _fail(self, failure: Failed, more: "Repeats") -> None:
        known = self.failures.get(failure)
        if known is not None:
            known.count, known.last = known.count + more.count, max(known.last, more.last)
        elif len(self.failures) < _MOST_FAILURES:
            self.failures[failure] = more

    def repeat(self, request: Request, client: str, now: float) -> None:
        """Record one more response from the cache; it takes 300 ns."""
        repeats = self._repeats.get((request, client))
        if repeats is None:
            if len(self._repeats) >= _MOST_REPEATS:
                self.settle()
            self._repeats[request, client] = Repeats(1, now, now)
        else:
            repeats.count += 1
            repeats.last = now

    def settle(self) -> None:
        """Add the repeated requests to the counts."""
        for (request, client), repeats in self._repeats.items():
            self.add(request, client, repeats.first, repeats.last, repeats.count)
        self._repeats = {}

    def absorb(self, later: "StatsBuffer") -> None:
        """Add a later buffer, for the case that this one could not be written.

        Both must be settled.
        """
        self.figures.update(later.figures)
        for pull_client, session in later.sessions.items():
            if pull_client in self.sessions:
                self.sessions[pull_client].absorb(session)
            elif len(self.sessions) < _MOST_SESSIONS:
                self.sessions[pull_client] = session
        for failure, repeats in later.failures.items():
            self._fail(failure, repeats)
        self.answers |= later.answers
        self.limits |= later.limits

    def in_order(self) -> Iterator[tuple[PullClient, Session]]:
        """Yield the sessions in the order of their start."""
        yield from sorted(self.sessions.items(), key=lambda item: item[1].first)
