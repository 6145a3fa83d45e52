"""Reloads the configuration while the mirror serves, on SIGHUP, for one process or for all.

A new configuration is applied completely or, with one log line per mistake, not at all.  No
connection is dropped: requests end under the configuration they began with.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.config.changes import changes, in_force
from mirror.config.model import Config
from mirror.http.tls import Certificate
from mirror.logs import configure
from mirror.metrics.shared_files import Lifecycle
from mirror.server.access import certificate, certificate_error, opened_admission
from mirror.server.generation import Generations
from mirror.server.listeners import Listener
from mirror.server.maintenance import Maintenance
from mirror.server.open_files import say_what_is_cut
from mirror.server.process import SystemdNotifier
from mirror.server.store import Store, cache_limits
from mirror.server.upstreams import check_upstreams
from mirror.server.warming import Warming
from mirror.store.interface import IndexUnavailableError
from mirror.trouble import Problem, Trouble
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.server.cluster import OpenedCluster

_log = logging.getLogger(__name__)

#: Reads the configuration again from its sources; raises UserError.
Reread = Callable[[], Config]


@dataclass(frozen=True, slots=True)
class Reloadable:
    """All parts of a running mirror that depend on its configuration."""

    listeners: Sequence[Listener]
    generations: Generations
    store: Store
    housekeeping: Maintenance
    warming: Warming
    certificate: Certificate | None
    lifecycle: Lifecycle
    refused: Trouble
    cluster: "OpenedCluster | None" = None

    @property
    def config(self) -> Config:
        return self.generations.current.config

    async def reload(self, config: Config) -> None:
        """Apply ``config``, except for settings that need a restart.

        Raises:
            UserError: something that it names cannot be used; then nothing has changed.
        """
        config = in_force(self.config, config)
        generation = await self.generations.open(config)
        try:
            apply = self.cluster.prepared(config) if self.cluster is not None else None
            self._use_certificate(config)
        except UserError:
            await self.generations.drop(generation)
            raise
        configure(config.log.level, config.log.format, access=config.log.access)
        if apply is not None:
            apply()
        self.generations.begin(generation)
        self.housekeeping.apply_options(config)
        self.warming.by(config)
        with contextlib.suppress(OSError, IndexUnavailableError):  # logged and repaired already
            await self.store.limit(cache_limits(config))
        self.refused.over()

    def _use_certificate(self, config: Config) -> None:
        if self.certificate is None:
            return
        server = config.server
        try:
            self.certificate.use(Path(server.tls_certificate), Path(server.tls_key))
        except OSError as error:
            raise certificate_error(server, error) from error


def try_out(config: Config) -> None:
    """Check that everything a configuration names can be used, without using it.

    Raises:
        UserError: something cannot be used.
    """
    check_upstreams(config)
    certificate(config)
    with opened_admission(config):
        pass


def tell_changes(running: Config, read: Config) -> None:
    told = changes(running, read)
    for change in told:
        _log.log(logging.WARNING if change.waits else logging.INFO, "reload: %s", change)
    waiting = sum(change.waits for change in told)
    _log.info("reloaded: %d changed, %d wait for a restart", len(told) - waiting, waiting)


def tell_mistakes(error: UserError) -> None:
    for line in error.lines:
        _log.error("not reloaded, the former configuration stays: %s", line)


def refused_reload() -> Problem:
    """What every visitor of the status page may know of a reload that changed nothing."""
    return Problem(
        "the configuration was not reloaded",
        "the new one has mistakes; the former one stays in force",
        "mirror check names each mistake; correct them and reload again",
    )


async def reload_when_told(
    told: asyncio.Event, running: Reloadable, reread: Reread, systemd: SystemdNotifier
) -> None:
    while True:
        await told.wait()
        told.clear()
        systemd.reloading()
        try:
            before, read = running.config, reread()
            await running.reload(read)
            say_what_is_cut(read)
        except UserError as error:
            tell_mistakes(error)
            running.refused.met(refused_reload())
            running.lifecycle.reloaded(successful=False)
        except Exception:  # the task must live on for the next reload
            _log.exception("not reloaded: the mirror failed")
            running.lifecycle.reloaded(successful=False)
        else:
            tell_changes(before, read)
            running.lifecycle.reloaded(successful=True)
        systemd.ready()
