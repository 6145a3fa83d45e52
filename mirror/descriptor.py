"""File descriptors that several threads use, closed when the last use has ended.

A number alone means another file as soon as it is closed and given out again.  Work that waits for
a thread therefore refers to a ``Descriptor``, and gets the number only while the file is open.
"""

import errno
import os
import threading
from collections.abc import Callable


class Descriptor:
    """An open file descriptor; ``with`` it there is its number, which stays open meanwhile."""

    __slots__ = ("_close", "_closed", "_lock", "_number", "_uses")

    def __init__(self, number: int, close: Callable[[int], None] = os.close) -> None:
        """Take over ``number``, to be closed by ``close``."""
        self._number = number
        self._close = close
        self._lock = threading.Lock()
        self._uses = 0
        self._closed = False

    def __enter__(self) -> int:
        """The number.

        Raises:
            OSError: it was closed before.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the file was closed before its turn came")
            self._uses += 1
        return self._number

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._uses -= 1
            last = self._closed and not self._uses
        if last:
            self._close(self._number)

    def fileno(self) -> int:
        """The number, for the owner alone, who knows that it is open."""
        return self._number

    def duplicate(self) -> "Descriptor":
        """Another one of the same open file.

        Raises:
            OSError: it was closed before, or there are too many.
        """
        with self as number:
            return Descriptor(os.dup(number))

    def close(self) -> None:
        """Close it, once its last use has ended; may be called again."""
        with self._lock:
            last = not self._closed and not self._uses
            self._closed = True
        if last:
            self._close(self._number)
