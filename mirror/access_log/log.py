"""Collects what a process answers, and hands it to the thread of the log once a second.

A response from memory costs the event loop one counter here.  Such responses are repeated faster
than the standard library formats a record (50 us): their lines are formatted by the thread of the
log, from parts that they have in common.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from mirror.access_log.answers import (
    NO_CONTENT,
    PULL_KINDS,
    Answered,
    Content,
    PullRequest,
    RunningRequest,
    content_of,
)
from mirror.access_log.lines import MOST_FIELD, RECORD_BYTES, PullLine, given, json_head, log_pulls
from mirror.access_log.pulls import Pull, PullSink
from mirror.http.admission import WRONG_LOGIN
from mirror.http.exchange import AccessRecord, Exchange, UpstreamTime
from mirror.logs import ACCESS, JsonFormatter, TextFormatter, is_json, logfmt, queued
from mirror.lru import Lru

_BEAT_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1024 * 1024  # of collected requests; more are handed on at once
_KNOWN_CONTENTS: Final = 1000
_REPEATED_BYTES: Final = 384  # of a line that has its parts in common with others
_MOST_PATH: Final = 200
_REQUEST: Final = "request"

_log = logging.getLogger(ACCESS)


def _request_lines() -> bool:
    """Whether the log has a line for each request: for machines, and to find a cause."""
    return _log.isEnabledFor(logging.INFO if is_json() else logging.DEBUG)


def _log_request(ending: AccessRecord) -> None:
    """Log a finished request; a request of a pull that failed has the line of the pull."""
    exchange = ending.exchange
    if _request_lines() if exchange.kind in PULL_KINDS else _log.isEnabledFor(_level(exchange)):
        _log_line(_LineParts(ending), ending.client, ending.seconds, RECORD_BYTES)


def _level(exchange: Exchange) -> int:
    if exchange.failed:
        return logging.WARNING
    status = exchange.status
    refused = exchange.kind not in PULL_KINDS and (
        status >= 400 if exchange.whole else exchange.detail != ""
    )
    if refused and exchange.detail.startswith(WRONG_LOGIN):
        return logging.WARNING
    # Clients ask without a password first, and for what may be missing; replicas, for the leader.
    usual = not refused or status in {401, 404, 407, 421}
    return logging.DEBUG if usual and not is_json() else logging.INFO


class _LineParts:
    """The fields of a line before and after ``seconds``; the client comes first."""

    def __init__(self, ending: AccessRecord) -> None:
        exchange = ending.exchange
        self.level = _level(exchange)
        self.before = given(
            method=ending.method[:MOST_FIELD],
            status=exchange.status,
            upstream=exchange.upstream,
            repository=exchange.repository[:MOST_FIELD],
            reference=exchange.reference[:MOST_FIELD],
            kind=exchange.kind,
            result="" if exchange.outcome is None else exchange.outcome.value,
            bytes=exchange.sent_bytes,
        )
        self.after = given(
            whole=exchange.whole,
            agent=ending.agent[:MOST_FIELD],
            detail=exchange.detail[:MOST_FIELD],
            user=exchange.user[:MOST_FIELD],
            trace_id=exchange.trace_id,
            upstream_seconds=round(exchange.upstream_time.seconds, 4) or "",
            path=ending.path.partition("?")[0][:_MOST_PATH]
            if exchange.kind in {"", "passed"}
            else "",
        )

    @cached_property
    def text(self) -> tuple[str, str]:
        """Both parts as text."""
        return logfmt(self.before), logfmt(self.after)

    @cached_property
    def json(self) -> tuple[str, str]:
        """Both parts as members of a JSON object."""
        return json.dumps(self.before)[1:-1], json.dumps(self.after)[1:-1]


@dataclass(slots=True)
class _Line:
    """A request that ended at ``ended`` (Unix seconds)."""

    parts: _LineParts
    client: str
    seconds: float
    ended: float

    def text(self, formatter: JsonFormatter | TextFormatter) -> str:
        """Return the line; see :class:`mirror.logs.Lines`."""
        level = self.parts.level
        if isinstance(formatter, TextFormatter):
            before, after = self.parts.text
            client = logfmt({"client": self.client}) if self.client else ""
            head = f"{formatter.head(self.ended, level)} {_REQUEST}{client}{before}"
            return f"{head} seconds={self.seconds}{after}\n"
        before, after = self.parts.json
        client = f'"client": {json.dumps(self.client)}, ' if self.client else ""
        fields = f'{client}{before}, "seconds": {self.seconds}, {after}'
        return f"{{{json_head(self.ended, level, _REQUEST)}, {fields}}}\n"


def _log_line(parts: _LineParts, client: str, seconds: float, size: int) -> None:
    """Log a request of a client, which the log may keep in ``size`` bytes of memory."""
    client, seconds = client[:MOST_FIELD], round(seconds, 4)
    output = queued()
    if output is not None:
        output.put(_Line(parts, client, seconds, time.time()), size)
        return
    fields = given(client=client, **parts.before, seconds=seconds, **parts.after)
    _log.log(parts.level, _REQUEST, extra=dict(fields))


class _Repeated:
    """A response from memory: what all its repetitions have in common."""

    def __init__(self, ending: AccessRecord) -> None:
        # The first client's own: its user, its trace and its wait for upstream.
        exchange = replace(ending.exchange, user="", trace_id="", upstream_time=UpstreamTime())
        self.ending = replace(ending, exchange=exchange)
        self.parts = _LineParts(self.ending)
        self.request: PullRequest | None = None  # made by the log's thread


@dataclass(slots=True)
class _Count:
    count: int
    first: float
    last: float


class AccessLog:
    """A line per pull, and lines of requests; ``pulls`` puts the pulls together."""

    def __init__(self, pulls: PullSink) -> None:
        self._pulls = pulls
        self._contents: Lru[str, Content] = Lru(_KNOWN_CONTENTS)  # used by the log's thread only
        self._running: dict[int, tuple[str, Exchange]] = {}
        self._begin()

    def _begin(self) -> None:
        self._request_lines = _request_lines()
        self._ended: list[AccessRecord] = []
        self._repeats: dict[tuple[_Repeated, str], _Count] = {}
        self._bytes = 0

    def request_began(self, exchange: Exchange, client: str = "") -> None:
        """Note a request in progress; ``client`` names a client that has no address."""
        self._running[id(exchange)] = client or exchange.origin.client, exchange

    def request_ended(self, ending: AccessRecord) -> None:
        """Log a finished request, or note it as part of a pull."""
        self._running.pop(id(ending.exchange), None)
        _log_request(ending)
        if ending.exchange.kind in PULL_KINDS:
            self._ended.append(ending)
            manifest = ending.exchange.manifest
            self._add(RECORD_BYTES + (0 if manifest is None else len(manifest.body)))

    def repeated(self, ending: AccessRecord) -> Callable[[str, float], None]:
        """Return the function that notes one more such response: client, seconds."""
        shared = _Repeated(ending)

        def note(client: str, seconds: float) -> None:
            now = time.monotonic()
            known = self._repeats.get((shared, client))
            if known is None:
                self._repeats[shared, client] = _Count(1, now, now)
                self._add(_REPEATED_BYTES)
            else:
                known.count += 1
                known.last = now
            if self._request_lines:
                _log_line(shared.parts, client, seconds, _REPEATED_BYTES)

        return note

    def _add(self, size: int) -> None:
        self._bytes += size
        if self._bytes > _MOST_BYTES:
            self.beat()

    def beat(self, *, final: bool = False) -> None:
        """Hand on what was collected; ``final``: no more requests come, so all pulls end."""
        batch = _Batch(
            self._pulls,
            self._contents,
            self._ended,
            self._repeats,
            [*self._running.values()],
            final,
        )
        size = RECORD_BYTES + self._bytes
        self._begin()
        output = queued()
        if not _log.isEnabledFor(logging.WARNING):
            return
        if output is not None:
            output.put(batch, size)
        else:
            log_pulls(batch.pulls())


@dataclass(slots=True)
class _Batch:
    """What a process answered in about a second."""

    sink: PullSink
    contents: Lru[str, Content]
    ended: list[AccessRecord]
    repeats: dict[tuple[_Repeated, str], _Count]
    running: list[tuple[str, Exchange]]
    final: bool

    def text(self, formatter: JsonFormatter | TextFormatter) -> str:
        """Return the lines of the pulls that ended; see :class:`mirror.logs.Lines`."""
        return "".join(PullLine(pull).text(formatter) for pull in self.pulls())

    def pulls(self) -> list[Pull]:
        running = {
            RunningRequest(client, exchange.upstream, exchange.repository)
            for client, exchange in self.running
            if exchange.upstream
        }
        return self.sink.take(self._answered(), running, final=self.final)

    def _answered(self) -> Iterator[Answered]:
        for ending in self.ended:
            began = ending.exchange.started
            request = self._request(ending)
            yield Answered(request, ending.client, 1, began, began + ending.seconds)
        for (shared, client), known in self.repeats.items():
            if shared.request is None:
                shared.request = self._request(shared.ending)
            yield Answered(shared.request, client, known.count, known.first, known.last)

    def _request(self, ending: AccessRecord) -> PullRequest:
        manifest = ending.exchange.manifest
        if manifest is None:
            return PullRequest.of(ending, NO_CONTENT)
        name = str(manifest.digest)
        content = self.contents.get(name)
        if content is None:
            content = content_of(manifest)
            self.contents.put(name, content)
        return PullRequest.of(ending, content)


@asynccontextmanager
async def opened_access_log(pulls: PullSink) -> AsyncIterator[AccessLog]:
    """Log requests and pulls while the context is open."""
    log = AccessLog(pulls)

    async def beat() -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            log.beat()

    beating = asyncio.create_task(beat(), name="access log")
    try:
        yield log
    finally:
        beating.cancel()
        log.beat(final=True)
