"""Status messages to systemd, sd_notify(3), and the sockets that it opened, sd_listen_fds(3)."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Final

from mirror.user_error import UserError

_log = logging.getLogger(__name__)
_MICROSECONDS: Final = 1_000_000


class SystemdNotifier:
    """Sends the state of the mirror to systemd; does nothing if NOTIFY_SOCKET is not set."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        """Read the socket, and the watchdog period of the process ``pid``, from ``environment``."""
        place = environment.get("NOTIFY_SOCKET", "")
        self._place = "\0" + place[1:] if place.startswith("@") else place
        period = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        self.watchdog_seconds = int(period) / _MICROSECONDS if meant and period.isdecimal() else 0.0

    def ready(self) -> None:
        """Report that the mirror serves: after the start, or after ``reloading``."""
        self._say("READY=1")

    def reloading(self) -> None:
        """Report that the mirror reads its configuration again."""
        moment = time.clock_gettime(time.CLOCK_MONOTONIC) * _MICROSECONDS
        self._say(f"RELOADING=1\nMONOTONIC_USEC={moment:.0f}")

    def stopping(self) -> None:
        """Report that the mirror stops, once active transfers end."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Answer the watchdog for the supervised process."""
        if self.watchdog_seconds:
            self._say("WATCHDOG=1")

    async def ping(self) -> None:
        """Answer the watchdog at intervals; ends at once if systemd did not ask for it."""
        while self._place and self.watchdog_seconds:
            self.alive()
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _say(self, text: str) -> None:
        if not self._place:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), self._place)
        except OSError as error:
            _log.warning("cannot send %r to systemd: %s", text.partition("\n")[0], error.strerror)


@asynccontextmanager
async def supervised(environment: Mapping[str, str], pid: int) -> AsyncIterator[SystemdNotifier]:
    """The notifier; it answers the watchdog while the context is open."""
    supervisor = SystemdNotifier(environment, pid)
    pinging = asyncio.create_task(supervisor.ping(), name="watchdog")
    try:
        yield supervisor
    finally:
        pinging.cancel()


_FIRST: Final = 3  # SD_LISTEN_FDS_START
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def activated_sockets(environment: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that systemd passed to the process ``pid``, or an empty list.

    Works once per process: it removes the LISTEN_* variables from ``environment``, and marks the
    sockets as not inheritable.

    Raises:
        UserError: one of them is not a listening stream socket.
    """
    named = {name: environment.get(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if named["PID"] != str(pid) or not named["FDS"].isdecimal():
        return []
    for name in named:
        environment.pop(f"LISTEN_{name}", None)
    names = named["FDNAMES"].split(":")
    return [
        _adopted(_FIRST + number, names[number] if number < len(names) else "")
        for number in range(int(named["FDS"]))
    ]


def _adopted(descriptor: int, name: str) -> socket.socket:
    mistake = UserError(
        f"systemd passed a file descriptor ({descriptor}, {name or 'without a name'}) that is not "
        "a listening socket: the socket unit needs ListenStream= and Accept=no"
    )
    try:
        os.set_inheritable(descriptor, False)
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        raise mistake from error
    if adopted.family not in _FAMILIES or not _listens(adopted):
        adopted.close()
        raise mistake
    return adopted


def _listens(adopted: socket.socket) -> bool:
    stream = adopted.type == socket.SOCK_STREAM
    return stream and bool(adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
