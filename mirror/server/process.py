"""What the process asks of the system and says on its terminal."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from mirror import __version__, clients
from mirror.config.listen import Address, lookup_outermost
from mirror.config.model import Config
from mirror.server.listeners import Listener
from mirror.server.outgoing_proxies import named_proxies

_ORPHAN_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


def announce(config: Config, listeners: Sequence[Listener]) -> None:
    """Say where the mirror listens, what for, and how to point a client at it."""
    addresses = [listener.address for listener in listeners if not listener.proxy]
    default = config.default_upstream()
    others = ", ".join(name for name in config.enabled() if name != default)
    places = ", ".join(map(str, addresses))
    lines = [
        f"mirror {__version__} listens on {places} for {default} (default), {others}",
        f"  cache   {config.cache.directory} (at most {config.cache.max_size.text})",
        *(f"  through the proxy {proxy}" for proxy in named_proxies(config)),
        *_ways_in(config, addresses),
        *_ways_through(listener.address for listener in listeners if listener.proxy),
    ]
    print("\n".join(lines), file=sys.stdout, flush=True)


def _ways_in(config: Config, addresses: Sequence[Address]) -> list[str]:
    outermost = lookup_outermost(addresses)
    if outermost is None:  # what is in front of it has the address for clients
        path = str(addresses[0]).removeprefix("unix:")
        return [f"  figures curl --unix-socket {path} http://localhost/metrics"]
    tls = bool(config.server.tls_certificate)
    url = clients.reachable_url(outermost.host, outermost.port, socket.gethostname(), tls=tls)
    return [
        f'  Docker  put {{"registry-mirrors": ["{url}"]}} into /etc/docker/daemon.json,',
        "          then restart Docker; `mirror client` prints it for other clients too, and",
        "          `mirror doctor` says why one still goes elsewhere",
        f"  figures {url}/metrics",
    ]


def _ways_through(addresses: Iterable[Address]) -> list[str]:
    places = ", ".join(map(str, addresses))
    advice = "`mirror client docker --proxy daemon`, and `mirror ca` for the CA"
    return [f"  proxy   listens on {places}: {advice}"] if places else []


def heed(stopping: asyncio.Event, reloading: asyncio.Event | None = None) -> None:
    """Set ``stopping`` on SIGTERM or SIGINT, ``reloading`` on SIGHUP, from now on.

    A signal may come before the start ends.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if reloading is not None:
        loop.add_signal_handler(signal.SIGHUP, reloading.set)


def say_stopping(config: Config) -> None:
    """Say what a stop waits for."""
    _log.info("stopping: finishing what is being sent (at most %s)", config.server.drain.text)


async def until_orphaned(stopping: asyncio.Event) -> None:
    """Stop when the process that started this one is gone: nobody else could end it."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110  # the system tells of it by signal alone
        await asyncio.sleep(_ORPHAN_SECONDS)
    stopping.set()
