"""The limit on open files, and the configured limits reduced to fit into it.

Each of clients, downloads and cached responses has a fixed part, so that none takes descriptors
that another needs to finish.
"""

import asyncio
import errno
import logging
import resource
import time
from dataclasses import dataclass
from typing import Any, Final

from mirror.config.model import Config
from mirror.pull.slots import SlotLimits
from mirror.server.listeners import ACCEPTED_AT_ONCE
from mirror.shares import Limits

#: Databases, listening sockets, logs, names being resolved; and connections just accepted, over
#: some turns of the loop, before they are counted.
_OWN: Final = 64 + 4 * ACCEPTED_AT_ONCE
_HOT: Final = 512
#: A client that receives a blob: its connection, a duplicate of its descriptor, and the file.  Up
#: to a quarter more clients have a connection each, to be answered that there are too many.
_QUARTERS_PER_CLIENT: Final = 13
_PER_DOWNLOAD: Final = 3  # from upstream, into the file, out of the file
_LEAST_FOR_HOT: Final = 4 * _HOT
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SILENCE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one process; ``hot``: whether responses are cached with their files open."""

    connections: int
    downloads: int
    tunnels: int
    hot: bool

    @property
    def files(self) -> int:
        clients = -(-self.connections * _QUARTERS_PER_CLIENT // 4)
        return _OWN + _HOT * self.hot + clients + _PER_DOWNLOAD * self.downloads + self.tunnels


def bounds(config: Config) -> Bounds:
    """The limits of a configuration, as far as they fit into the limit on open files."""
    return fitted(_configured(config), _allowed())


def fitted(wanted: Bounds, files: int) -> Bounds:
    """Reduce the ``wanted`` limits to fit into so many open ``files``."""
    if wanted.files <= files:
        return wanted
    hot = wanted.hot and files >= _LEAST_FOR_HOT
    left = max(files - _OWN - _HOT * hot, 0)
    downloads = max(1, min(wanted.downloads, left // (4 * _PER_DOWNLOAD)))
    tunnels = min(wanted.tunnels, max(1, left // 8))
    left -= _PER_DOWNLOAD * downloads + tunnels
    connections = max(1, min(wanted.connections, left * 4 // _QUARTERS_PER_CLIENT))
    return Bounds(connections, downloads, tunnels, hot)


def allow_open_files() -> None:
    """Raise the soft limit on open files to the hard one: the usual 1024 is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # macOS reports no limit, and has one
            _log.debug("the limit on open files stays at %d: %s", soft, error)


def say_what_is_cut(config: Config) -> None:
    """Log one warning if the configuration does not fit into the limit on open files."""
    wanted, given = _configured(config), bounds(config)
    cut = [
        f"{key} {ours} instead of {theirs}"
        for key, ours, theirs in (
            ("[limits] connections", given.connections, wanted.connections),
            ("[limits] downloads", given.downloads, wanted.downloads),
            ("[proxy] tunnels", given.tunnels, wanted.tunnels),
            ("[server] hot", given.hot, wanted.hot),
        )
        if ours != theirs
    ]
    if cut:
        _log.warning(
            "the system allows a process %d open files; reduced: %s; raise LimitNOFILE "
            "(ulimit -Hn, docker run --ulimit nofile) to %d",
            _allowed(),
            ", ".join(cut).replace("False instead of True", "off"),
            wanted.files,
        )


def _configured(config: Config) -> Bounds:
    tunnels = config.proxy.tunnels if config.proxy.listen else 0
    return Bounds(config.limits.connections, config.limits.downloads, tunnels, config.server.hot)


def _allowed() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def say_seldom_what_is_exhausted(loop: asyncio.AbstractEventLoop) -> None:
    """Make ``loop`` log once a minute that it cannot accept clients, not for every attempt.

    asyncio retries once a second, a thousand attempts each time.
    """
    silent_until = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal silent_until
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif time.monotonic() >= silent_until:
            silent_until = time.monotonic() + _SILENCE_SECONDS
            _log.error(
                "%s: new clients wait until there is room; raise LimitNOFILE (ulimit -Hn), or "
                "lower [limits] connections",
                error.strerror,
            )

    loop.set_exception_handler(handle)


def slot_limits(config: Config) -> SlotLimits:
    limits = config.limits
    connections = {name: upstream.max_connections for name, upstream in config.enabled().items()}
    patience = limits.queue_timeout.seconds
    return SlotLimits(
        bounds(config).downloads, limits.queue, patience, connections, *_shares(config)
    )


def question_limits(config: Config) -> Limits:
    """Limits on simultaneous questions to upstreams; the queue is as long as ``connections``."""
    return _unqueued(config, config.limits.questions)


def answer_limits(config: Config) -> Limits:
    """Limits on the bytes of responses in memory."""
    return _unqueued(config, config.limits.answers.bytes)


def _unqueued(config: Config, size: int) -> Limits:
    limits = config.limits
    return Limits(size, limits.connections, limits.queue_timeout.seconds, {}, *_shares(config))


def _shares(config: Config) -> tuple[float, float]:
    """Shares of one upstream (all of it if there is only one) and of one client, 0 to 1."""
    limits = config.limits
    of_upstream = limits.upstream_share.share if len(config.enabled()) > 1 else 1.0
    return of_upstream or 1.0, limits.client_share.share or 1.0
