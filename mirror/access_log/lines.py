"""The line of a pull that has ended, formatted by the thread of the log queue."""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from mirror.access_log.pulls import UP_TO_DATE, Pull
from mirror.logs import ACCESS, JsonFormatter, TextFormatter, printable, queued, when
from mirror.ui.formatting import duration, plain_size

RECORD_BYTES: Final = 2048

MOST_FIELD: Final = 512  # characters of one field
_PULL: Final = "pull"
_SHOWN_DIGEST: Final = 19  # characters: sha256: and twelve digits
_COLOURS: Final = {"hit": "green", "failed": "red", "refused": "red", UP_TO_DATE: "grey"}

_log = logging.getLogger(ACCESS)


def given(**fields: object) -> Mapping[str, object]:
    return {key: value for key, value in fields.items() if value != ""}


def json_head(unix_seconds: float, level: int, message: str) -> str:
    name = logging.getLevelName(level).lower()
    head = f'"time": "{when(unix_seconds)}", "level": "{name}", "logger": "{ACCESS}"'
    return f'{head}, "message": "{message}"'


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
        return f"{{{json_head(self._ended, level, _PULL)}, {fields}}}\n"

    def words(self, formatter: TextFormatter) -> str:
        """Return the line for people, without the time."""
        pull = self._pull
        puller = pull.puller
        users = f" ({', '.join(pull.users)})" if pull.users else ""
        words = [_name(pull), pull.platform, f"{puller.client}{users}", puller.agent]
        outcome = formatter.painted(pull.outcome, _COLOURS.get(pull.outcome, "yellow"))
        times = f"{pull.times} pulls" if pull.times > 1 else ""
        shown = [printable(word[:MOST_FIELD]).strip() for word in words]
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
        return given(
            client=puller.client[:MOST_FIELD],
            user=", ".join(pull.users)[:MOST_FIELD],
            upstream=puller.upstream,
            repository=puller.repository[:MOST_FIELD],
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
