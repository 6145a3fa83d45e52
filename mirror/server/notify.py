"""Status messages to systemd: sd_notify(3), without libsystemd."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

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
