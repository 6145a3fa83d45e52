"""Logs: one line per event, as text for people or as JSON for machines.

No request or response header is ever logged but User-Agent, and no query of any address.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from mirror.web.exchange import Ending

_access = logging.getLogger("mirror.access")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def _when(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record and its extra fields."""
        line: dict[str, object] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line of words, extra fields as key=value (logfmt)."""

    def format(self, record: logging.LogRecord) -> str:
        """The record and its extra fields; control characters never reach a terminal."""
        fields = "".join(f" {key}={_word(value)}" for key, value in _fields(record).items())
        message = _printable(record.getMessage())
        line = f"{_when(record)} {record.levelname.lower()} {message}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _word(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)


def configure(level: str, form: str, *, access: bool) -> None:
    """Send what the mirror has to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _access.setLevel(logging.INFO if access else logging.CRITICAL)


class AccessLog:
    """One line per request."""

    @property
    def wanted(self) -> bool:
        """Whether anybody reads it."""
        return _access.isEnabledFor(logging.INFO)

    def request_ended(self, ending: Ending) -> None:
        """Write the line."""
        if not self.wanted:
            return
        exchange = ending.exchange
        fields = {
            "client": ending.client,
            "method": ending.method,
            "status": exchange.status,
            "upstream": exchange.upstream,
            "repository": exchange.repository,
            "reference": exchange.reference,
            "kind": exchange.kind,
            "result": "" if exchange.outcome is None else exchange.outcome.value,
            "bytes": exchange.sent_bytes,
            "seconds": round(ending.seconds, 4),
            "whole": exchange.whole,
            "agent": ending.agent,
            "detail": exchange.detail,
        }
        if exchange.kind in {"", "passed"}:
            fields["path"] = ending.path.partition("?")[0][:200]
        _access.info("request", extra={key: value for key, value in fields.items() if value != ""})
