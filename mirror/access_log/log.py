"""Collects what a process answers, and hands it to the thread of the log once a second.

A response from memory costs the event loop one counter here.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
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
from mirror.access_log.lines import (
    RECORD_BYTES,
    REPEATED_BYTES,
    LineParts,
    PullLine,
    log_line,
    log_pulls,
    log_request,
    request_lines,
)
from mirror.access_log.pulls import Pull, PullSink
from mirror.http.exchange import AccessRecord, Exchange, UpstreamTime
from mirror.logs import ACCESS, JsonFormatter, TextFormatter, queued
from mirror.lru import Lru

_BEAT_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1024 * 1024  # of collected requests; more are handed on at once
_KNOWN_CONTENTS: Final = 1000

_log = logging.getLogger(ACCESS)


class _Repeated:
    """A response from memory: what all its repetitions have in common."""

    def __init__(self, ending: AccessRecord) -> None:
        # The first client's own: its user, its trace and its wait for upstream.
        exchange = replace(ending.exchange, user="", trace_id="", upstream_time=UpstreamTime())
        self.ending = replace(ending, exchange=exchange)
        self.parts = LineParts(self.ending)
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
        self._request_lines = request_lines()
        self._ended: list[AccessRecord] = []
        self._repeats: dict[tuple[_Repeated, str], _Count] = {}
        self._bytes = 0

    def request_began(self, exchange: Exchange, client: str = "") -> None:
        """Note a request in progress; ``client`` names a client that has no address."""
        self._running[id(exchange)] = client or exchange.origin.client, exchange

    def request_ended(self, ending: AccessRecord) -> None:
        """Log a finished request, or note it as part of a pull."""
        self._running.pop(id(ending.exchange), None)
        log_request(ending)
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
                self._add(REPEATED_BYTES)
            else:
                known.count += 1
                known.last = now
            if self._request_lines:
                log_line(shared.parts, client, seconds, REPEATED_BYTES)

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
