"""Logs: one line per event, as text for people or as JSON for machines.

Of all request and response headers only User-Agent is logged; the query of a URL is never logged.
"""

from mirror.logs.formats import JsonFormatter, TextFormatter, fields_of, logfmt, printable, when
from mirror.logs.output import (
    ACCESS,
    Lines,
    QueuedOutput,
    configure,
    dropped,
    is_json,
    queue_output,
    queued,
)

__all__ = [
    "ACCESS",
    "JsonFormatter",
    "Lines",
    "QueuedOutput",
    "TextFormatter",
    "configure",
    "dropped",
    "fields_of",
    "is_json",
    "logfmt",
    "printable",
    "queue_output",
    "queued",
    "when",
]
