"""Pulls, put together from the requests of clients.

A pull is what one client asks of one image without a pause.  It ends when the config and all
layers of the manifests that the client asked for are sent, or when the client is silent and has
no request in progress.  Several processes may answer parts of one pull, and their requests may
arrive here in any order.  Times are monotonic seconds, sizes bytes.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

from mirror.access_log.answers import MOST_PARTS, Answered, Problem, PullRequest, RunningRequest
from mirror.lru import Lru
from mirror.stats.buffer import worse

UP_TO_DATE: Final = "up to date"
#: How long a client is silent before its pull ends: a complete one, and one that may go on.
COMPLETE_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 5.0

_MOST_CLIENTS: Final = 4096
_MOST_FORMER: Final = 1024
_MOST_AT_ONCE: Final = 16  # pulls of one repository by one client


class Puller(NamedTuple):
    """A client at one repository."""

    client: str
    agent: str
    upstream: str
    repository: str


@dataclass(slots=True, eq=False)
class Pull:
    """The requests of one client for one image; ``seen`` is when it was last known to go on."""

    puller: Puller
    reference: str
    first: float
    last: float
    seen: float = 0.0
    digest: str = ""
    heads: int = 0
    gets: int = 0
    result: str = ""
    sent_bytes: int = 0
    missed_bytes: int = 0
    upstream_seconds: float = 0.0
    trace_id: str = ""
    users: dict[str, None] = field(default_factory=dict)
    manifests: dict[str, None] = field(default_factory=dict)  # digests asked for
    platforms: dict[str, str] = field(default_factory=dict)  # of manifests in an index
    parts: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)  # bytes sent of each
    #: The last answer for each reference: its time, and its problem if it had one.
    answers: dict[str, tuple[float, Problem | None]] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        """Whether the client asked for a tag."""
        return self.reference != "" and ":" not in self.reference

    @property
    def times(self) -> int:
        """How often the client asked for the image by its name."""
        return max(self.heads, self.gets, 1)

    @property
    def platform(self) -> str:
        """The platforms that the client chose from an index, empty if unknown."""
        chosen = {self.platforms.get(digest, "") for digest in self.manifests}
        return ", ".join(sorted(filter(None, chosen)))

    @property
    def problem(self) -> Problem | None:
        """The problem that was not over at the end; the latest of the gravest."""
        problems = sorted(
            ((problem.level, at, problem) for at, problem in self.answers.values() if problem),
            key=lambda each: each[:2],
        )
        return problems[-1][2] if problems else None

    @property
    def outcome(self) -> str:
        """The word of its problem, the worst result of its blobs, or that it is up to date.

        A stale manifest counts too.  Otherwise a pull of cached layers is a hit, although
        upstream was asked for the tag.
        """
        problem = self.problem
        return problem.word if problem else self.result or UP_TO_DATE

    @property
    def level(self) -> int:
        problem = self.problem
        if problem is None:
            return logging.INFO
        return max(problem.level, logging.INFO) if self.blobs else problem.level

    def is_complete(self) -> bool:
        """Whether config and layers of its manifests are sent."""
        sent = self.blobs
        return (
            bool(self.parts)
            and all(sent.get(digest, -1) >= size for digest, size in self.parts.items())
            and self.problem is None
        )

    def concerns(self, digest: str) -> bool:
        """Whether a manifest or blob is part of the image."""
        return digest in {self.reference, self.digest} or (
            digest in self.platforms or digest in self.parts
        )

    def is_part_of(self, request: PullRequest) -> bool:
        """Whether its requests without a tag belong to the image that a tag names."""
        return not self.named and (
            self.reference in {"", request.digest} or self.reference in request.content.platforms
        )

    def is_followed_by(self, answered: Answered) -> bool:
        """Whether a request for the same tag begins the next pull of it."""
        return (
            self.named
            and self.reference == answered.request.reference
            and answered.first > self.last
            and self.is_complete()
        )

    def note(self, answered: Answered) -> None:
        """Add a request."""
        request, count = answered.request, answered.times
        self.first, self.last = min(self.first, answered.first), max(self.last, answered.last)
        self.sent_bytes += request.size * count
        self.missed_bytes += request.size * count if request.result == "miss" else 0
        self.upstream_seconds += request.upstream_seconds
        self.trace_id = self.trace_id or request.trace_id
        _put(self.users, request.user, None)
        if request.problem is None and (not request.is_manifest or request.result == "stale"):
            self.result = worse(self.result, request.result)
        if answered.last >= self.answers.get(request.reference, (0.0, None))[0]:
            _put(self.answers, request.reference, (answered.last, request.problem))
        if not request.is_manifest:
            sent = self.blobs.get(request.reference, 0) + request.size * count
            _put(self.blobs, request.reference, sent)
            return
        if request.reference == self.reference:
            self.heads += count if request.head else 0
            self.gets += 0 if request.head else count
            self.digest = request.digest or self.digest
        if request.problem is None:
            self._note_manifest(request)

    def _note_manifest(self, request: PullRequest) -> None:
        _put(self.manifests, request.digest, None)
        for digest, platform in request.content.platforms.items():
            _put(self.platforms, digest, platform)
        for digest, size in request.content.parts.items():
            _put(self.parts, digest, size)

    def absorb(self, other: "Pull") -> None:
        """Add the requests of another pull, which turned out to be of the same image."""
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.seen = max(self.seen, other.seen)
        self.result = worse(self.result, other.result)
        self.sent_bytes += other.sent_bytes
        self.missed_bytes += other.missed_bytes
        self.upstream_seconds += other.upstream_seconds
        self.trace_id = self.trace_id or other.trace_id
        self.blobs |= {key: self.blobs.get(key, 0) + sent for key, sent in other.blobs.items()}
        self.users |= other.users
        self.manifests |= other.manifests
        self.platforms |= other.platforms
        self.parts |= other.parts
        self.answers |= other.answers


V = TypeVar("V")


def _put(table: dict[str, V], key: str, value: V) -> None:
    if key and (key in table or len(table) < MOST_PARTS):
        table[key] = value


class PullSink(Protocol):
    """Takes the requests of a process."""

    def take(
        self,
        answered: Iterable[Answered],
        running: Collection[RunningRequest],
        *,
        final: bool = False,
    ) -> list[Pull]:
        """Take requests; return the pulls that ended.  ``final``: no more requests come."""


class PullTracker:
    """Puts pulls together, as a :class:`PullSink`; used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pulls: dict[Puller, list[Pull]] = {}  # the client heard last is the last one
        self._replaced: list[Pull] = []
        self._former: Lru[Puller, Pull] = Lru(_MOST_FORMER)

    def take(
        self,
        answered: Iterable[Answered],
        running: Collection[RunningRequest],
        *,
        final: bool = False,
    ) -> list[Pull]:
        now = self._clock()
        for each in answered:
            self._add(each, now)
        for puller, pulls in self._pulls.items() if running else ():
            if RunningRequest(puller.client, puller.upstream, puller.repository) in running:
                for pull in pulls:
                    pull.seen = now
        ended, self._replaced = self._replaced, []
        return [*ended, *self._ended(now, final=final)]

    def _add(self, answered: Answered, now: float) -> None:
        request = answered.request
        puller = Puller(answered.client, request.agent, request.upstream, request.repository)
        pulls = self._pulls[puller] = self._pulls.pop(puller, [])
        for over in [pull for pull in pulls if pull.is_followed_by(answered)]:
            pulls.remove(over)
            self._replaced.append(over)
        pull = self._pull_of(request, pulls)
        if pull is None:
            pull = self._new(puller, answered)
            pulls.append(pull)
        pull.seen = now
        pull.note(answered)
        if len(pulls) > _MOST_AT_ONCE:
            self._replaced.append(pulls.pop(0))
        if len(self._pulls) > _MOST_CLIENTS:
            self._replaced += self._pulls.pop(next(iter(self._pulls)))

    def _pull_of(self, request: PullRequest, pulls: list[Pull]) -> Pull | None:
        reference = request.reference
        if not request.is_manifest:
            having = [pull for pull in pulls if reference in pull.parts]
            lacking = [each for each in having if each.blobs.get(reference, -1) < 1]
            return next(iter(lacking or having[-1:] or pulls[-1:]), None)
        if ":" in reference:
            # A pull without a name: another process reported its blobs before this manifest.
            found = [pull for pull in pulls if pull.concerns(reference) or not pull.reference]
            for pull in found[:1]:
                pull.reference = pull.reference or reference
            return next(iter(found), None)
        same = [pull for pull in pulls if pull.reference == reference or pull.is_part_of(request)]
        for other in same[1:]:
            pulls.remove(other)
            same[0].absorb(other)
        if same and same[0].reference != reference:
            same[0].reference, same[0].heads, same[0].gets = reference, 0, 0
        return same[0] if same else None

    def _new(self, puller: Puller, answered: Answered) -> Pull:
        """Return a new pull, named as the former one if that ended too early."""
        request = answered.request
        digest = request.reference if ":" in request.reference else ""
        name = request.reference if request.is_manifest else ""
        pull = Pull(puller, name, answered.first, answered.last)
        former = self._former.get(puller) if digest else None
        if former is not None and former.concerns(digest):
            pull.reference, pull.platforms = former.reference, dict(former.platforms)
            pull.manifests = {} if request.is_manifest else dict(former.manifests)
        return pull

    def _ended(self, now: float, *, final: bool) -> Iterator[Pull]:
        for puller, pulls in list(self._pulls.items()):
            ended = [pull for pull in pulls if final or _is_over(pull, now)]
            for pull in ended:
                pulls.remove(pull)
                self._former.put(puller, pull)
                yield pull
            if not pulls:
                del self._pulls[puller]


def _is_over(pull: Pull, now: float) -> bool:
    silent = now - pull.seen
    return silent >= COMPLETE_SECONDS and (silent >= SILENT_SECONDS or pull.is_complete())
