"""Limits of the configuration, converted for the parts that apply them."""

from mirror.config.model import Config
from mirror.pull.slots import SlotLimits
from mirror.server.open_files import bounds
from mirror.shares import Limits


def slot_limits(config: Config) -> SlotLimits:
    """Limits on simultaneous downloads."""
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
