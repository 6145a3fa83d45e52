"""CPU time and memory of processes, read from /proc.  Linux only."""

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_QUIET_SECONDS = 0.15
_PATIENCE_SECONDS = 30.0


def tree(root: int) -> list[int]:
    """A process and its descendants, e.g. the workers of nginx or of the mirror."""
    parents = {pid: _stat(pid)[1] for pid in _pids()}
    found = [root]
    for pid in found:
        found += [child for child, fields in parents.items() if fields == str(pid)]
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of a process tree: all threads, including ended ones."""
    return sum(_ticks(pid) for pid in tree(root)) / _TICKS


def settled_cpu_seconds(root: int) -> float:
    """The same, once the tree is idle.

    Work of a server after its clients have left counts: distribution fetches again in the
    background.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    before = cpu_seconds(root)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = cpu_seconds(root)
        if now - before <= 1 / _TICKS:
            return now
        before = now
    return before


def forget_peaks(root: int) -> None:
    """Reset the peak of :func:`peak_mib`."""
    for pid in tree(root):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(root: int) -> float:
    """The largest resident set of any one process of the tree, in MiB."""
    return max(_peak_kib(pid) for pid in tree(root)) / 1024


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12])  # utime, stime; proc(5) counts from the pid


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may contain spaces and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 15  # it has ended since it was listed
