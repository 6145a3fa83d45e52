"""Disk space reservations of fills, in small files that all processes can read.

The leader of a fill writes the reservation.  The evictor reads it to compute the free space, and
followers in other processes read it for the size of the blob.  The reservation of a dead leader
does not count.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reservation:
    """``size``: bytes that a fill may grow to; ``total``: size of the blob, None if unknown."""

    size: int
    total: int | None


class Reservations:
    """The reservations in one cache directory, by the name of the partial file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, reservation: Reservation) -> None:
        """Write a reservation.

        Raises:
            OSError: the file cannot be written.
        """
        total = "-" if reservation.total is None else reservation.total
        # Constant length, so that one write replaces the whole text and no reader sees half of it.
        text = f"{reservation.size:20} {total:>20}"
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, text.encode(), 0)
        finally:
            os.close(fd)

    def lookup(self, name: str) -> Reservation | None:
        """Return a reservation, or None."""
        try:
            size, total = (self._directory / name).read_text().split()
            return Reservation(int(size), None if total == "-" else int(total))
        except (OSError, ValueError):
            return None

    def forget(self, name: str) -> None:
        """Remove a reservation if it exists."""
        with contextlib.suppress(OSError):
            (self._directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of all partial files with a reservation."""
        return os.listdir(self._directory)

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each fill may grow to."""
        found = {name: self.lookup(name) for name in self.names()}
        return {name: each.size for name, each in found.items() if each is not None}
