"""The lines of the access log: one per request, and one per pull.

Responses from memory are repeated faster than the standard library formats a record (50 us).
Their lines are formatted by the thread of the log queue, from parts that they have in common.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.access_log.answers import PULL_KINDS
from mirror.access_log.pulls import UP_TO_DATE, Pull
from mirror.http.admission import WRONG_LOGIN
from mirror.http.exchange import AccessRecord, Exchange
from mirror.logs import (
    ACCESS,
    JsonFormatter,
    TextFormatter,
    is_json,
    logfmt,
    printable,
    queued,
    when,
)
from mirror.ui.formatting import duration, plain_size

RECORD_BYTES: Final = 2048
REPEATED_BYTES: Final = 384  # of a line that has its parts in common with others

_MOST_FIELD: Final = 512  # characters of one field
_MOST_PATH: Final = 200
_REQUEST: Final = "request"
_PULL: Final = "pull"
_SHOWN_DIGEST: Final = 19  # characters: sha256: and twelve digits
_COLOURS: Final = {"hit": "green", "failed": "red", "refused": "red", UP_TO_DATE: "grey"}

_log = logging.getLogger(ACCESS)


def request_lines() -> bool:
    """Whether the log has a line for each request: for machines, and to find a cause."""
    return _log.isEnabledFor(logging.INFO if is_json() else logging.DEBUG)


def log_request(ending: AccessRecord) -> None:
    """Log a finished request; a request of a pull that failed has the line of the pull."""
    exchange = ending.exchange
    if request_lines() if exchange.kind in PULL_KINDS else _log.isEnabledFor(_level(exchange)):
        log_line(LineParts(ending), ending.client, ending.seconds, RECORD_BYTES)


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


class LineParts:
    """The fields of a line before and after ``seconds``; the client comes first."""

    def __init__(self, ending: AccessRecord) -> None:
        exchange = ending.exchange
        self.level = _level(exchange)
        self.before = _given(
            method=ending.method[:_MOST_FIELD],
            status=exchange.status,
            upstream=exchange.upstream,
            repository=exchange.repository[:_MOST_FIELD],
            reference=exchange.reference[:_MOST_FIELD],
            kind=exchange.kind,
            result="" if exchange.outcome is None else exchange.outcome.value,
            bytes=exchange.sent_bytes,
        )
        self.after = _given(
            whole=exchange.whole,
            agent=ending.agent[:_MOST_FIELD],
            detail=exchange.detail[:_MOST_FIELD],
            user=exchange.user[:_MOST_FIELD],
            trace_id=exchange.trace_id,
            upstream_seconds=round(exchange.upstream_time.seconds, 4) or "",
            path=ending.path.partition("?")[0][:_MOST_PATH]
            if exchange.kind in {"", "passed"}
            else "",
        )
        self._text: tuple[str, str] | None = None
        self._json: tuple[str, str] | None = None

    def text(self) -> tuple[str, str]:
        """Return both parts as text; made once."""
        if self._text is None:
            self._text = logfmt(self.before), logfmt(self.after)
        return self._text

    def json(self) -> tuple[str, str]:
        """Return both parts as members of a JSON object; made once."""
        if self._json is None:
            self._json = _members(self.before), _members(self.after)
        return self._json


def _given(**fields: object) -> Mapping[str, object]:
    return {key: value for key, value in fields.items() if value != ""}


def _members(fields: Mapping[str, object]) -> str:
    return json.dumps(fields)[1:-1]


@dataclass(slots=True)
class _Line:
    """A request that ended at ``ended`` (Unix seconds)."""

    parts: LineParts
    client: str
    seconds: float
    ended: float

    def text(self, formatter: JsonFormatter | TextFormatter) -> str:
        """Return the line; see :class:`mirror.logs.Lines`."""
        level = self.parts.level
        if isinstance(formatter, TextFormatter):
            before, after = self.parts.text()
            client = logfmt({"client": self.client}) if self.client else ""
            head = f"{formatter.head(self.ended, level)} {_REQUEST}{client}{before}"
            return f"{head} seconds={self.seconds}{after}\n"
        before, after = self.parts.json()
        client = f'"client": {json.dumps(self.client)}, ' if self.client else ""
        fields = f'{client}{before}, "seconds": {self.seconds}, {after}'
        return f"{{{_json_head(self.ended, level, _REQUEST)}, {fields}}}\n"


def _json_head(unix_seconds: float, level: int, message: str) -> str:
    name = logging.getLevelName(level).lower()
    head = f'"time": "{when(unix_seconds)}", "level": "{name}", "logger": "{ACCESS}"'
    return f'{head}, "message": "{message}"'


def log_line(parts: LineParts, client: str, seconds: float, size: int) -> None:
    """Log a request of a client, which the log may keep in ``size`` bytes of memory."""
    client, seconds = client[:_MOST_FIELD], round(seconds, 4)
    output = queued()
    if output is not None:
        output.put(_Line(parts, client, seconds, time.time()), size)
        return
    fields = _given(client=client, **parts.before, seconds=seconds, **parts.after)
    _log.log(parts.level, _REQUEST, extra=dict(fields))


def log_pulls(pulls: Iterable[Pull]) -> None:
    """Log pulls that have ended, in a process whose log may have no thread."""
    output = queued()
    for pull in pulls:
        line = PullLine(pull)
        if output is not None:
            output.put(line, RECORD_BYTES)
        elif _log.isEnabledFor(pull.level):
            _log.log(pull.level, "%s", line.words(TextFormatter()), extra=dict(line.fields()))


class PullLine:
    """A pull that has ended, as one line."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._ended = time.time() - max(0.0, time.monotonic() - pull.last)

    def text(self, formatter: JsonFormatter | TextFormatter) -> str:
        """Return the line, nothing if the log does not show its level."""
        level = self._pull.level
        if not _log.isEnabledFor(level):
            return ""
        if isinstance(formatter, TextFormatter):
            info = level == logging.INFO
            head = formatter.time(self._ended) if info else formatter.head(self._ended, level)
            return f"{head} {self.words(formatter)}\n"
        fields = json.dumps(self.fields())[1:-1]
        return f"{{{_json_head(self._ended, level, _PULL)}, {fields}}}\n"

    def words(self, formatter: TextFormatter) -> str:
        """Return the line for people, without the time."""
        pull = self._pull
        puller = pull.puller
        users = f" ({', '.join(pull.users)})" if pull.users else ""
        words = [_name(pull), pull.platform, f"{puller.client}{users}", puller.agent]
        outcome = formatter.painted(pull.outcome, _COLOURS.get(pull.outcome, "yellow"))
        times = f"{pull.times} pulls" if pull.times > 1 else ""
        shown = [printable(word[:_MOST_FIELD]).strip() for word in words]
        return "  ".join(filter(None, [*shown, f"{outcome}{self._amount()}", times]))

    def _amount(self) -> str:
        pull = self._pull
        if pull.problem is not None and pull.outcome != "not found":
            return f": {printable(pull.problem.text)}"
        if not pull.blobs:
            return ""
        seconds = pull.last - pull.first
        if seconds <= 0:
            return f"  {plain_size(pull.sent_bytes)}"
        took = duration(seconds).replace("\N{NO-BREAK SPACE}", " ")
        speed = plain_size(pull.sent_bytes / seconds)
        return f"  {plain_size(pull.sent_bytes)} in {took} ({speed}/s)"

    def fields(self) -> Mapping[str, object]:
        """Return the line for machines; fields without a value are left out."""
        pull = self._pull
        puller, problem = pull.puller, pull.problem
        return _given(
            client=puller.client[:_MOST_FIELD],
            user=", ".join(pull.users)[:_MOST_FIELD],
            upstream=puller.upstream,
            repository=puller.repository[:_MOST_FIELD],
            reference=pull.reference,
            digest=pull.digest,
            platform=pull.platform,
            agent=puller.agent,
            result=pull.outcome.replace(" ", "_"),
            detail=problem.text if problem else "",
            pulls=pull.times,
            bytes=pull.sent_bytes,
            missed_bytes=pull.missed_bytes,
            seconds=round(pull.last - pull.first, 4),
            upstream_seconds=round(pull.upstream_seconds, 4),
            trace_id=pull.trace_id,
        )


def _name(pull: Pull) -> str:
    """Return the image as people write it."""
    puller, reference = pull.puller, pull.reference
    image = "/".join(filter(None, (puller.upstream, puller.repository)))
    if ":" in reference:
        return f"{image}@{reference[:_SHOWN_DIGEST]}"
    return f"{image}:{reference}" if reference else image
