"""Where the figures of several processes are, so that each can tell the sum.

Apart from ``metrics``, because the library has to find it set when it is imported.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a directory of our own


@contextmanager
def shared_figures(processes: int) -> Iterator[None]:
    """Let ``processes`` share their figures while the context is open; one alone needs nothing."""
    os.environ.pop(_VARIABLE, None)
    if processes == 1:
        yield
        return
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="mirror-figures-", dir=place)
    os.environ[_VARIABLE] = directory
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def are_shared() -> bool:
    """Whether there are figures of other processes to be added."""
    return _VARIABLE in os.environ
