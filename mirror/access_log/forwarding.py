"""From the workers to the first process: requests, so that a pull of several workers is one line.

The kernel hands the connections of one client to any worker, so only the first process sees whole
pulls.  Workers send datagrams, from the threads of their logs: a worker that is killed leaves no
half message, and a first process that hangs costs lines, but never delays a request.
"""

import io
import pickle
import socket
from collections.abc import Collection, Iterable
from typing import Final

from mirror.access_log.answers import Answered, RunningRequest
from mirror.access_log.lines import log_pulls
from mirror.access_log.pulls import Pull, PullTracker

_BUFFER_BYTES: Final = 1024 * 1024  # the system may allow less
_MESSAGE_BYTES: Final = 32 * 1024  # of a message that is not one large manifest
_MOST_BYTES: Final = 256 * 1024
_MOST_AT_ONCE: Final = 1000  # messages read before the first process does its other work
_PATIENCE_SECONDS: Final = 1.0


class PullForwarder:
    """A worker's end; used by the thread of its log."""

    def __init__(self, out: socket.socket) -> None:
        """Send to ``out``, the socket that :meth:`PullReceiver.entrance` returns."""
        self._out = out
        out.settimeout(_PATIENCE_SECONDS)

    def take(
        self,
        answered: Iterable[Answered],
        running: Collection[RunningRequest],
        *,
        final: bool = False,  # noqa: ARG002  # other workers may go on with these pulls
    ) -> list[Pull]:
        """Send requests to the first process, which finds out when pulls end."""
        message = b""
        for each in (*answered, *running):
            part = pickle.dumps(each)
            if message and len(message) + len(part) > _MESSAGE_BYTES:
                self._send(message)
                message = b""
            message += part
        if message:
            self._send(message)
        return []

    def _send(self, message: bytes) -> None:
        try:
            self._out.send(message)
        except OSError:  # the first process hangs or is gone, or the message is too long
            return


class PullReceiver:
    """The first process's end: puts together and logs the pulls of all workers."""

    def __init__(self) -> None:
        self._in, self._entrance = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in.setblocking(False)
        for end, option in ((self._in, socket.SO_RCVBUF), (self._entrance, socket.SO_SNDBUF)):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._tracker = PullTracker()

    @property
    def entrance(self) -> socket.socket:
        """The socket for the workers."""
        return self._entrance

    def fileno(self) -> int:
        """Return the descriptor that is readable when requests have arrived."""
        return self._in.fileno()

    def receive(self, *, final: bool = False) -> None:
        """Read what has arrived, and log the pulls that ended; ``final``: all of them."""
        answered: list[Answered] = []
        running: set[RunningRequest] = set()
        for _ in range(_MOST_AT_ONCE):
            try:
                message = io.BytesIO(self._in.recv(_MOST_BYTES))
            except BlockingIOError:
                break
            while message.tell() < len(message.getbuffer()):
                each = pickle.load(message)  # noqa: S301  # from a process of this program
                if isinstance(each, Answered):
                    answered.append(each)
                else:
                    running.add(each)
        log_pulls(self._tracker.take(answered, running, final=final))

    def close(self) -> None:
        """Close both ends."""
        self._in.close()
        self._entrance.close()
