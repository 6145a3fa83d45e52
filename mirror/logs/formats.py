"""The forms of log lines: text for people, JSON for machines."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def when(unix_seconds: float) -> str:
    """Return the time in UTC with milliseconds (RFC 3339)."""
    whole, milliseconds = divmod(int(unix_seconds * 1000), 1000)
    return f"{_second(whole)}.{milliseconds:03}Z"


@lru_cache(maxsize=8)
def _second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record and its extra fields as JSON."""
        line: dict[str, object] = {
            "time": when(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if traceback := traceback_of(record):
            line["exception"] = traceback
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line of text, with extra fields as key=value (logfmt)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record and its extra fields; control characters are escaped."""
        message = _printable(record.getMessage())
        line = (
            f"{when(record.created)} {record.levelname.lower()} {message}{logfmt(_fields(record))}"
        )
        if traceback := traceback_of(record):
            line += "\n" + traceback
        return line


def logfmt(fields: Mapping[str, object]) -> str:
    """Return `` key=value`` for each field; values with spaces or control characters are quoted."""
    return "".join(f" {key}={_word(value)}" for key, value in fields.items())


def traceback_of(record: logging.LogRecord) -> str:
    if record.exc_text is None and record.exc_info:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return record.exc_text or ""


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _word(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)
