"""The ledger: usage statistics that survive restarts and are shared by all processes.

The ledger never delays a pull: events are collected in memory and a separate thread writes them a
second later.  If the write fails, the events wait and pulls go on.
"""

import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mirror.stats.buffer import StatsBuffer
from mirror.stats.db import HOUR_SECONDS, StatsDatabase, day_of, discard, is_damage
from mirror.stats.queries import read_report, report_of
from mirror.stats.report import Filling, StatsReport
from mirror.threads import Threads, run_in
from mirror.trouble import Problem

R = TypeVar("R")

_log = logging.getLogger(__name__)


class Ledger:
    """Access to the ledger of a cache directory, for one of the processes that write it."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """``directory`` contains the database; ``clock`` returns Unix seconds."""
        self._directory = directory
        self._clock = clock
        self._process = secrets.token_hex(8)
        self._thread = Threads(1, "ledger")
        self._database: StatsDatabase | None = None
        self._unwritten: StatsBuffer | None = None
        self._lasting = False  # some of its downloads or troubles are in the database
        self._trouble = ""
        self.buffer = self._new_buffer()

    async def flush(self, fills: Sequence[Filling] = (), problems: Sequence[Problem] = ()) -> None:
        """Write the collected events, the running ``fills`` and the troubles that last.

        To be called every second.  If the write fails, the events are kept for the next call.
        """
        buffer, self.buffer = self.buffer, self._new_buffer()
        if buffer or fills or problems or self._lasting or self._unwritten:
            await run_in(self._thread, lambda: self._write(buffer, fills, problems))

    async def read(
        self, query: Callable[[sqlite3.Connection, float], R], otherwise: Callable[[], R]
    ) -> R:
        """Return the result of a query of this time, or of ``otherwise`` if the ledger fails.

        The query sees all events of this process.
        """
        buffer, self.buffer = self.buffer, self._new_buffer()

        def read() -> R:
            if buffer or self._unwritten:
                self._write(buffer, None)
            try:
                return query(self._opened().connection, self._clock())
            except (OSError, sqlite3.Error) as error:
                self._fail(error)
                return otherwise()

        return await run_in(self._thread, read)

    async def state(self, *, recent: int = 50, images: int = 10) -> StatsReport:
        """Return the content of the ledger, including all events of this process."""
        said = await self.read(
            partial(report_of, recent=recent, images=images),
            lambda: read_report(self._directory, self._clock(), recent=recent, images=images),
        )
        return replace(said, trouble=self._trouble)

    async def close(self) -> None:
        """Write the remaining events and close the database."""
        await self.flush()
        await run_in(self._thread, self._close)
        self._thread.shutdown()

    def _new_buffer(self) -> StatsBuffer:
        now = self._clock()
        return StatsBuffer(day_of(now), int(now // HOUR_SECONDS))

    # On the ledger's thread.

    def _write(
        self,
        buffer: StatsBuffer,
        fills: Sequence[Filling] | None,
        problems: Sequence[Problem] = (),
    ) -> None:
        buffer.settle()
        if self._unwritten is not None:
            self._unwritten.absorb(buffer)
            buffer = self._unwritten
        self._unwritten = buffer
        try:
            database = self._opened()
            if buffer:
                database.write(buffer, self._clock())
            self._unwritten = None
            if fills is not None and (fills or problems or self._lasting):
                database.write_lasting(self._process, fills, problems, self._clock())
                self._lasting = bool(fills or problems)
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
        else:
            self._trouble = ""

    def _opened(self) -> StatsDatabase:
        if self._database is not None and not self._database.in_place():
            self._close()
        if self._database is None:
            self._database = StatsDatabase(self._directory, self._clock())
        return self._database

    def _fail(self, error: OSError | sqlite3.Error) -> None:
        """Log an error once; a damaged database is removed, and created again at the next use."""
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self._close()
            with contextlib.suppress(OSError):
                discard(self._directory)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        known, self._trouble = self._trouble, reason
        if not known:
            _log.warning(
                "ledger %s: %s; pulls go on, and statistics wait until the ledger works again",
                self._directory,
                reason,
            )

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
