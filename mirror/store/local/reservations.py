"""How large fills will become, in small files beside them, where every process can see it.

Written by a fill's leader, read by whoever counts the room that is left and by those who follow
the fill from another process.  What a leader that is gone has left counts for nothing.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reservation:
    """``size``: bytes a fill may grow to; ``total``: those of its blob, where upstream said so."""

    size: int
    total: int | None


class Reservations:
    """What every fill in one cache directory expects, by the name of its partial file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, expectation: Reservation) -> None:
        """Say what a fill expects.

        Raises:
            OSError: the disk says no.
        """
        total = "-" if expectation.total is None else expectation.total
        # Always as long, so that one write replaces another and no reader finds half of it.
        text = f"{expectation.size:20} {total:>20}"
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, text.encode(), 0)
        finally:
            os.close(fd)

    def lookup(self, name: str) -> Reservation | None:
        """What a fill expects, or None."""
        try:
            size, total = (self._directory / name).read_text().split()
            return Reservation(int(size), None if total == "-" else int(total))
        except (OSError, ValueError):
            return None

    def forget(self, name: str) -> None:
        """The fill is over; it need not have expected anything."""
        with contextlib.suppress(OSError):
            (self._directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Who expects something."""
        return os.listdir(self._directory)

    def sizes(self) -> dict[str, int]:
        """How many bytes each fill may grow to."""
        found = {name: self.lookup(name) for name in self.names()}
        return {name: each.size for name, each in found.items() if each is not None}
