"""The process: its signals, its parent, its terminal output, and systemd, sd_notify(3)."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, NoReturn

from mirror import __version__, clients
from mirror.config.addresses import Address, lookup_outermost
from mirror.config.mistakes import old_spellings
from mirror.config.model import Config
from mirror.logs import queued
from mirror.server.listeners import Listener, Purpose
from mirror.server.upstreams import named_proxies

_ORPHAN_SECONDS: Final = 1.0
_MICROSECONDS: Final = 1_000_000
SECOND_SIGNAL: Final = "stopped at once by a second signal: transfers are cut off"

_log = logging.getLogger(__name__)


def announce(config: Config, listeners: Sequence[Listener], shortage: str) -> None:
    """Print where the mirror listens, for which registries, and how to configure a client.

    In a log for machines this is one record.  ``shortage`` says why the cache cannot reach its
    maximum size, empty if it can.  Log what the configuration spells as in earlier releases.
    """
    addresses, proxies, metrics = (
        [listener.address for listener in listeners if listener.purpose is purpose]
        for purpose in Purpose
    )
    default = config.default_upstream()
    others = ", ".join(name for name in config.enabled() if name != default)
    places = ", ".join(map(str, addresses))
    head = f"mirror {__version__} listens on {places} for {default} (default), {others}"
    cache, most = config.cache.directory, f"{config.cache.max_size.text}{shortage}"
    if config.log.format == "json":
        url = _url(addresses, tls=bool(config.server.tls_certificate))
        fields = {"cache": str(cache), "max_size": most, "status": url}
        _log.info("%s", head, extra={name: value for name, value in fields.items() if value})
    else:
        lines = [
            head,
            f"  cache   {cache} (at most {most})",
            *(f"  through the proxy {proxy}" for proxy in named_proxies(config)),
            *_ways_in(config, addresses),
            f"  metrics {_metrics(config, metrics or addresses)}",
            *_ways_through(proxies),
        ]
        print("\n".join(lines), file=sys.stdout, flush=True)
    for line in old_spellings(config):
        _log.warning("old spelling: %s", line)


def _ways_in(config: Config, addresses: Sequence[Address]) -> list[str]:
    url = _url(addresses, tls=bool(config.server.tls_certificate))
    if url is None:  # the server in front of the socket has the address for clients
        return []
    return [
        f'  Docker  put {{"registry-mirrors": ["{url}"]}} into /etc/docker/daemon.json,',
        "          then `systemctl reload docker`; `mirror client` prints it for other clients,",
        "          and `mirror doctor` shows why a client bypasses the mirror",
        f"  status  {url} in a browser",
    ]


def _metrics(config: Config, addresses: Sequence[Address]) -> str:
    """How to get the metrics, of which ``metrics_listen`` is always without TLS."""
    server = config.server
    url = _url(addresses, tls=bool(server.tls_certificate) and not server.metrics_listen)
    path = str(addresses[0]).removeprefix("unix:")
    unix = f"curl --unix-socket {path} http://localhost/metrics"
    return unix if url is None else f"{url}/metrics"


def _url(addresses: Sequence[Address], *, tls: bool) -> str | None:
    outermost = lookup_outermost(addresses)
    if outermost is None:
        return None
    return clients.reachable_url(outermost.host, outermost.port, socket.gethostname(), tls=tls)


def _ways_through(addresses: Iterable[Address]) -> list[str]:
    places = ", ".join(map(str, addresses))
    advice = "`mirror client docker --proxy daemon`, and `mirror ca` for the CA"
    return [f"  proxy   listens on {places}: {advice}"] if places else []


class Stop:
    """The stop of the process: ``asked`` for first, then due."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._now = asyncio.Event()

    def now(self) -> None:
        """Stop without lame-duck time: a person or the end of the parent asks for it."""
        self._now.set()
        self.asked.set()

    async def due(self, lame_duck: float) -> None:
        """Wait until the listeners must close: ``lame_duck`` seconds, or less."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._now.wait(), lame_duck)


def heed(stop: Stop, reloading: asyncio.Event | None = None) -> None:
    """Stop on SIGTERM or SIGINT, and set ``reloading`` on SIGHUP; the second stop ends at once.

    A worker, without ``reloading``, gets some signals twice: from systemd or a terminal, and from
    its supervisor, which ends the workers at once.  Call it early: a signal may arrive during the
    start.
    """
    loop = asyncio.get_running_loop()

    def told(number: int) -> None:
        if reloading is not None and stop.asked.is_set():
            _end_at_once(number)
        if number == signal.SIGINT:
            stop.now()
        stop.asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
    if reloading is not None:
        loop.add_signal_handler(signal.SIGHUP, reloading.set)


def _end_at_once(number: int) -> NoReturn:
    """End as if killed by the signal; a process 1 of a container would survive its own signal."""
    _log.warning(SECOND_SIGNAL)
    output = queued()
    if output is not None:
        output.drain()
    os._exit(128 + number)


def say_stopping(config: Config) -> None:
    _log.info(
        "stopping: /readyz answers 503; clients may connect for %s more (not after Ctrl-C); then "
        "active transfers finish, in at most %s",
        config.server.lame_duck.text,
        config.server.drain.text,
    )


async def until_orphaned(stop: Stop, parent: int) -> None:
    """Stop when the parent process is gone: only the parent would stop this one.

    ``parent``: its number as it has seen itself, since it may be gone before this is called.
    """
    while os.getppid() == parent:  # noqa: ASYNC110  # the system reports it by signal only
        await asyncio.sleep(_ORPHAN_SECONDS)
    stop.now()


class SystemdNotifier:
    """Sends the state of the mirror to systemd; does nothing if NOTIFY_SOCKET is not set."""

    def __init__(self) -> None:
        place = os.environ.get("NOTIFY_SOCKET", "")
        self._place = "\0" + place[1:] if place.startswith("@") else place
        period = os.environ.get("WATCHDOG_USEC", "")
        meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_seconds = (
            int(period) / _MICROSECONDS if meant and period.isdecimal() else 0.0
        )

    def ready(self) -> None:
        """Report that the mirror serves: after the start, or after ``reloading``."""
        self._say("READY=1")

    def reloading(self) -> None:
        moment = time.clock_gettime(time.CLOCK_MONOTONIC) * _MICROSECONDS
        self._say(f"RELOADING=1\nMONOTONIC_USEC={moment:.0f}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Answer the watchdog for the supervised process."""
        if self._watchdog_seconds:
            self._say("WATCHDOG=1")

    async def ping(self) -> None:
        """Answer the watchdog at intervals; ends at once if systemd did not ask for it."""
        while self._place and self._watchdog_seconds:
            self.alive()
            await asyncio.sleep(self._watchdog_seconds / 2)

    def _say(self, text: str) -> None:
        if not self._place:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), self._place)
        except OSError as error:
            _log.warning("cannot send %r to systemd: %s", text.partition("\n")[0], error.strerror)


@contextlib.asynccontextmanager
async def supervised() -> AsyncIterator[SystemdNotifier]:
    """The notifier; it answers the watchdog while the context is open."""
    supervisor = SystemdNotifier()
    pinging = asyncio.create_task(supervisor.ping(), name="watchdog")
    try:
        yield supervisor
    finally:
        pinging.cancel()
