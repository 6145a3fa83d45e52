"""What the configuration bounds, as the parts that share it want to know it."""

from mirror.config.model import Config
from mirror.pull.slots import SlotLimits
from mirror.server.open_files import bounds
from mirror.shares import Limits


def slot_limits(config: Config) -> SlotLimits:
    """How many downloads at once."""
    limits = config.limits
    connections = {name: upstream.max_connections for name, upstream in config.enabled().items()}
    patience = limits.queue_timeout.seconds
    return SlotLimits(
        bounds(config).downloads, limits.queue, patience, connections, *_shares(config)
    )


def question_limits(config: Config) -> Limits:
    """How many questions at once; as many may wait as there may be connections."""
    return _unqueued(config, config.limits.questions)


def answer_limits(config: Config) -> Limits:
    """How many bytes of answers in memory."""
    return _unqueued(config, config.limits.answers.bytes)


def _unqueued(config: Config, size: int) -> Limits:
    limits = config.limits
    return Limits(size, limits.connections, limits.queue_timeout.seconds, {}, *_shares(config))


def _shares(config: Config) -> tuple[float, float]:
    """What one upstream may hold of the whole (a lone one: all), and what one client may."""
    limits = config.limits
    of_upstream = limits.upstream_share.share if len(config.enabled()) > 1 else 1.0
    return of_upstream or 1.0, limits.client_share.share or 1.0
