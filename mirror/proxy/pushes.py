"""Times of pushes through this mirror; answers about a repository from before its push are stale.

Stored as files, so that all processes on one cache directory see a push at once.  If the files
cannot be written, only this process knows of the push.
"""

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
_NAME_BYTES: Final = 16
_NANOSECONDS: Final = 1_000_000_000


class Pushes:
    """The time of the last push to each repository."""

    def __init__(self, directory: Path, keep_seconds: float) -> None:
        """Keep times for ``keep_seconds``; it must exceed the lifetime of upstream's answers."""
        self._directory = directory
        self._keep_seconds = keep_seconds
        self._own: dict[str, int] = {}

    def last(self, name: str) -> str:
        """Return a text that changes with each push; empty if there was none."""
        moment = self._own.get(name, 0)
        with contextlib.suppress(OSError):
            moment = max(moment, self._file(name).stat().st_mtime_ns)
        return str(moment) if moment else ""

    def note(self, name: str) -> None:
        """Record a push now, and drop times that are older than ``keep_seconds``."""
        now = time.time_ns()
        self._own = {each: at for each, at in self._own.items() if self._counts(at, now)}
        # Always later than the previous push, even if the clock was set back.
        moment = self._own[name] = max(now, int(self.last(name) or 0) + 1)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._file(name).touch()
            os.utime(self._file(name), ns=(moment, moment))
            for file in self._directory.iterdir():
                if not self._counts(file.stat().st_mtime_ns, now):
                    file.unlink(missing_ok=True)
        except OSError as error:
            _log.info("cannot report a push to the other processes: %s", error)

    def _counts(self, moment: int, now: int) -> bool:
        return now - moment < self._keep_seconds * _NANOSECONDS

    def _file(self, name: str) -> Path:
        hashed = hashlib.blake2b(name.encode(), digest_size=_NAME_BYTES)
        return self._directory / hashed.hexdigest()
