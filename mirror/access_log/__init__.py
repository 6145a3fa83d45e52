"""The access log: one line per pull, and for machines one per request."""

from mirror.access_log.log import AccessLog, opened_access_log
from mirror.access_log.pulls import PullSink, PullTracker

__all__ = [
    "AccessLog",
    "PullSink",
    "PullTracker",
    "opened_access_log",
]
