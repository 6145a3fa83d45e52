"""The forms of log lines: text for people, JSON for machines."""

import json
import logging
import os
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


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that a record has besides its message (``extra``)."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": when(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if traceback := traceback_of(record):
            line["exception"] = traceback
        return json.dumps(line, default=str)


_COLOURS: Mapping[str, str] = {
    "grey": "\x1b[90m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "red": "\x1b[31m",
}
_PLAIN = "\x1b[0m"


class TextFormatter(logging.Formatter):
    """One line of text, with extra fields as key=value (logfmt)."""

    def __init__(self, *, terminal: bool = False, coloured: bool = False) -> None:
        """For a ``terminal`` the time is the local time of the day, as on a clock."""
        super().__init__()
        self._terminal = terminal
        self._coloured = coloured

    @classmethod
    def of(cls, fd: int) -> "TextFormatter":
        """Return the formatter for a descriptor; colours as https://no-color.org says."""
        try:
            terminal = os.isatty(fd)
        except OSError:
            terminal = False
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(terminal=terminal, coloured=terminal and not plain)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record and its extra fields; control characters are escaped."""
        message = printable(record.getMessage())
        head = self.head(record.created, record.levelno)
        line = f"{head} {message}{logfmt(fields_of(record))}"
        if traceback := traceback_of(record):
            line += "\n" + traceback
        return line

    def head(self, unix_seconds: float, level: int) -> str:
        """Return the time and the name of the level."""
        name = logging.getLevelName(level).lower()
        return f"{self.time(unix_seconds)} {self.painted(name, _colour_of(level))}"

    def time(self, unix_seconds: float) -> str:
        text = _time_of_day(int(unix_seconds)) if self._terminal else when(unix_seconds)
        return self.painted(text, "grey")

    def painted(self, text: str, colour: str) -> str:
        """Return a text in a colour, if the log goes to a terminal that has colours."""
        code = _COLOURS.get(colour, "") if self._coloured else ""
        return f"{code}{text}{_PLAIN}" if code else text


def _colour_of(level: int) -> str:
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "grey"


@lru_cache(maxsize=8)
def _time_of_day(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds).astimezone().strftime("%H:%M:%S")


def logfmt(fields: Mapping[str, object]) -> str:
    """Return `` key=value`` for each field; values with spaces or control characters are quoted."""
    return "".join(f" {key}={_word(value)}" for key, value in fields.items())


def traceback_of(record: logging.LogRecord) -> str:
    if record.exc_text is None and record.exc_info:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return record.exc_text or ""


def printable(text: str) -> str:
    """Return a text with its control characters escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _word(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)
