"""The directory in which several processes share their figures, so that each can report the sum.

The processes write files of prometheus-client in one directory, and each process can read all of
them.  If a file cannot be written, figures are lost but no request fails.  Separate from
``metrics.metrics``, because the library reads the environment variable when it is imported.
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
_PROCESS: Final = ".pid"  # one file for each process, named like the process
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a private directory

_log = logging.getLogger(__name__)


@contextmanager
def shared_figures(processes: int) -> Iterator[None]:
    """Let ``processes`` share their figures inside the context; one process needs no directory.

    If the directory cannot be created, each process reports its own figures.
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
            "%s: %s; workers cannot share figures, so /metrics shows those of one worker",
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
    """Return True if several processes share their figures."""
    return _VARIABLE in os.environ


def directory() -> Path:
    """Return the directory of the shared figures; only valid if :func:`are_shared`."""
    return Path(os.environ[_VARIABLE])


def note_process(name: str, pid: int | None) -> None:
    """Record the ID of a process of this mirror by its name; None: it has ended."""
    if not are_shared():
        return
    file = directory() / f"{name}{_PROCESS}"
    with contextlib.suppress(OSError):  # then /metrics lacks this process only
        if pid is None:
            file.unlink()
        else:
            file.write_text(str(pid))


def processes() -> dict[str, str]:
    """Return the IDs of this mirror's processes by name; only valid if :func:`are_shared`."""
    files = sorted(directory().glob(f"*{_PROCESS}"))
    return {file.stem: file.read_text() for file in files}


def _locked(place: Path) -> int:
    """Lock a directory and return the descriptor; forked processes inherit the lock."""
    # Rename after locking: a sweep by another mirror would remove an unlocked directory.
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
    """Remove the directories of mirrors that were killed with all their workers."""
    for left in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use by another mirror, or already removed
            if left.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)
