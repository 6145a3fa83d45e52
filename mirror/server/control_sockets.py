"""The control sockets of a running mirror: one directory, one unix socket per process.

Knows files, locks and sockets.  Must not know the protocol spoken over them.  A process holds the
lock of the directory while it makes or removes a socket, so that no socket is removed between bind
and listen.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.descriptor import Descriptor

_SUFFIX: Final = ".sock"
_MOST_BYTES: Final = 100  # length of a path; every system's sun_path has room for this many
_DESCRIPTORS: Final = Path("/proc/self/fd")  # Linux
_BACKLOG: Final = 128
_PROBE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ControlDirectory:
    """An open directory of sockets; the caller closes it."""

    path: Path
    fd: Descriptor

    @classmethod
    def open(cls, path: Path) -> "ControlDirectory":
        """Open a directory.

        Raises:
            OSError: it is missing, or this user may not open it.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return cls(path, Descriptor(os.open(path, flags)))

    def close(self) -> None:
        """Close the directory."""
        self.fd.close()

    def address(self, name: str) -> str:
        """The address of a socket to bind or connect to; valid while the directory is open.

        Raises:
            OSError: the path is too long for this system.
        """
        plain = str(self.path / name)
        if len(os.fsencode(plain)) <= _MOST_BYTES:
            return plain
        if _DESCRIPTORS.is_dir():  # a short path to the same file
            return f"{_DESCRIPTORS}/{self.fd.fileno()}/{name}"
        raise OSError(errno.ENAMETOOLONG, f"{plain} is too long for the name of a socket")

    def live(self) -> list[str]:
        """Return the names of the sockets on which a process listens; remove the dead ones.

        Raises:
            OSError: the directory cannot be read.
        """
        with self.fd:  # the caller may be cancelled meanwhile, and close the descriptor
            with contextlib.suppress(OSError), self._alone(fcntl.LOCK_NB):
                self.sweep()
            return [name for name in self._names() if self._is_live(name)]

    def sweep(self) -> None:
        """Remove sockets on which no process listens.  The caller must hold the lock.

        Raises:
            OSError: the directory cannot be read or changed.
        """
        for name in self._names():
            if not self._is_live(name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.fd.fileno())

    def _names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.fd.fileno()) if name.endswith(_SUFFIX))

    def _is_live(self, name: str) -> bool:
        address = self.address(name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(address)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:  # its queue is full, or access is denied: a process has the socket
                return True
            return True

    @contextlib.contextmanager
    def _alone(self, how: int = 0) -> Iterator[None]:
        fcntl.flock(self.fd.fileno(), fcntl.LOCK_EX | how)
        try:
            yield
        finally:
            fcntl.flock(self.fd.fileno(), fcntl.LOCK_UN)

    def _free_name(self, pid: int) -> str:
        """A free name for the socket of a process; two containers may use the same pid."""
        taken, number = set(self._names()), 0
        while (name := f"{pid}.{number}{_SUFFIX}" if number else f"{pid}{_SUFFIX}") in taken:
            number += 1
        return name

    def listen(self, pid: int) -> "ControlSocket":
        """Open the socket of a process, accessible to its owner only.

        Raises:
            OSError: the socket cannot be made.
        """
        with self._alone():
            os.fchmod(self.fd.fileno(), 0o700)
            self.sweep()
            name = self._free_name(pid)
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                raw.bind(self.address(name))
                os.chmod(name, 0o600, dir_fd=self.fd.fileno())
                raw.listen(_BACKLOG)
                raw.setblocking(False)
                return ControlSocket(self.path / name, raw, os.lstat(self.path / name))
            except OSError:
                raw.close()
                raise


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """A listening socket and its file; ``made`` identifies the file."""

    path: Path
    raw: socket.socket
    made: os.stat_result

    def in_place(self) -> bool:
        """Whether the file exists and still belongs to the socket."""
        try:
            there = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISSOCK(there.st_mode) and os.path.samestat(there, self.made)

    def withdraw(self) -> None:
        """Stop listening, and remove the file."""
        if self.in_place():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.raw.close()


def stand(directory: Path, pid: int) -> ControlSocket:
    """Listen in ``directory``, which is created if its parent exists.

    Raises:
        OSError: the directory or the socket cannot be made.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    meeting = ControlDirectory.open(directory)
    try:
        return meeting.listen(pid)
    finally:
        meeting.close()
