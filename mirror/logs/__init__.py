"""Logs: one line per event, as text for people or as JSON for machines.

Of all request and response headers only User-Agent is logged; the query of a URL is never logged.
"""

from mirror.logs.formats import JsonFormatter, TextFormatter, logfmt, when
from mirror.logs.output import (
    ACCESS,
    Line,
    QueuedOutput,
    configure,
    dropped,
    queue_output,
    queued,
)

__all__ = [
    "ACCESS",
    "JsonFormatter",
    "Line",
    "QueuedOutput",
    "TextFormatter",
    "configure",
    "dropped",
    "logfmt",
    "queue_output",
    "queued",
    "when",
]
