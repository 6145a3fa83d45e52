"""Where the figures of several processes are, so that each can tell the sum.

The processes write files of prometheus-client's in one directory, which any of them reads.  A file
that cannot be written costs figures, never a request.  Apart from ``metrics``, because the library
has to find the directory set when it is imported.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX: Final = "mirror-figures-"
_LOCK: Final = "lock"  # held by every process that writes there
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a directory of our own

_log = logging.getLogger(__name__)


@contextmanager
def shared_figures(processes: int) -> Iterator[None]:
    """Let ``processes`` share their figures while the context is open; one alone needs nothing.

    Where there is no place for them, each process tells its own.
    """
    os.environ.pop(_VARIABLE, None)
    if processes == 1:
        yield
        return
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _sweep(place)
    try:
        own = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        lock = _locked(own)
    except OSError as error:
        _log.warning(
            "%s: %s; each worker tells its own figures, and /metrics is those of one",
            place,
            error.strerror,
        )
        yield
        return
    os.environ[_VARIABLE] = str(own)
    try:
        yield
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)


def are_shared() -> bool:
    """Whether there are figures of other processes to be added."""
    return _VARIABLE in os.environ


def directory() -> Path:
    """Where the figures of all processes are; only where they are shared."""
    return Path(os.environ[_VARIABLE])


def _locked(place: Path) -> int:
    """A lock on a directory, which processes forked from this one hold too."""
    # Under its name only once it is locked: before, whoever sweeps would take it.
    unnamed = place / f"{_LOCK}.new"
    try:
        lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        place.rmdir()
        raise
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(place / _LOCK)
    return lock


def _sweep(place: Path) -> None:
    """Remove what mirrors left that were killed, workers and all."""
    for left in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or gone
            if left.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)
