"""The access log: one line per request, a warning if the request failed.

Responses from memory are repeated faster than the standard library formats a record (50 us).
Their lines are formatted by the thread of the log queue, from parts that they have in common.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.http.exchange import AccessRecord
from mirror.logs import ACCESS, logfmt, queued, when

_MOST_FIELD: Final = 512  # characters of one field
_MOST_PATH: Final = 200
_RECORD_BYTES: Final = 2048
_REPEATED_BYTES: Final = 384  # of a line that has its parts in common with others
_MESSAGE: Final = "request"

_log = logging.getLogger(ACCESS)


class AccessLog:
    """One line per request."""

    @property
    def wanted(self) -> bool:
        """Whether the access log is on."""
        return _log.isEnabledFor(logging.INFO)

    def request_ended(self, ending: AccessRecord) -> None:
        """Log a finished request."""
        if _log.isEnabledFor(_level(ending)):
            _log_line(_Parts(ending), ending.client, ending.seconds, _RECORD_BYTES)

    def repeated(self, ending: AccessRecord) -> Callable[[str, float], None]:
        """Return the function that logs one more such response: client, seconds."""
        parts = _Parts(ending)
        return lambda client, seconds: _log_line(parts, client, seconds, _REPEATED_BYTES)


def _level(ending: AccessRecord) -> int:
    return logging.WARNING if ending.exchange.failed else logging.INFO


class _Parts:
    """The fields of a line before and after ``seconds``; the client comes first."""

    def __init__(self, ending: AccessRecord) -> None:
        exchange = ending.exchange
        self.level = _level(ending)
        self.level_name = logging.getLevelName(self.level).lower()
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

    parts: _Parts
    client: str
    seconds: float
    ended: float

    def text(self, *, as_json: bool) -> str:
        """Return the line; see ``mirror.logs.Line``."""
        if not as_json:
            before, after = self.parts.text()
            client = logfmt({"client": self.client}) if self.client else ""
            head = f"{when(self.ended)} {self.parts.level_name} {_MESSAGE}{client}{before}"
            return f"{head} seconds={self.seconds}{after}"
        before, after = self.parts.json()
        client = f'"client": {json.dumps(self.client)}, ' if self.client else ""
        level = self.parts.level_name
        head = f'"time": "{when(self.ended)}", "level": "{level}", "logger": "{ACCESS}", '
        fields = f'{client}{before}, "seconds": {self.seconds}, {after}'
        return f'{{{head}"message": "{_MESSAGE}", {fields}}}'


def _log_line(parts: _Parts, client: str, seconds: float, size: int) -> None:
    client, seconds = client[:_MOST_FIELD], round(seconds, 4)
    output = queued()
    if output is not None:
        output.put(_Line(parts, client, seconds, time.time()), size)
        return
    fields = _given(client=client, **parts.before, seconds=seconds, **parts.after)
    _log.log(parts.level, _MESSAGE, extra=dict(fields))
