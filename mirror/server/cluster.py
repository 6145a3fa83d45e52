"""Builds this replica's part of a cluster.  Only imported if one is configured."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from mirror.cluster.blocks import SharedBlocks, opened_blocks, opened_place
from mirror.cluster.decisions import SharedDecisions
from mirror.cluster.leases import opened_leases
from mirror.cluster.peers import Peers, opened_peers
from mirror.cluster.secret import HANDOVER_SECONDS, Secret
from mirror.cluster.shared import SharedStore, opened_objects
from mirror.cluster.source import Cluster
from mirror.cluster.state import opened_state
from mirror.cluster.values import SharedCaches
from mirror.cluster.view import View
from mirror.config.model import Config
from mirror.inventory.ruling import parts_of
from mirror.metrics.cluster import ClusterMetrics
from mirror.metrics.metrics import Metrics
from mirror.policy.rules import Moment
from mirror.pull.feed import Feeds
from mirror.pull.slots import Slots
from mirror.server.events import StatsRecorder
from mirror.server.open_files import slot_limits
from mirror.server.shared_state import splitting
from mirror.server.store import Store
from mirror.store.interface import DecisionStore, ManifestStore, TagStore
from mirror.store.metadata.operator_files import BlockFile
from mirror.upstream.sessions import trusting
from mirror.user_error import UserError

_log = logging.getLogger(__name__)
_CHANGED: Final = (
    "reload: [cluster] secret_file has another secret, which is used in %d minutes; the former one "
    "is accepted for %d minutes"
)


@dataclass(frozen=True, slots=True)
class OpenedCluster:
    """What this replica shares with the others.

    ``caches`` is None without Redis or without a secret, ``blocks`` without a secret.
    ``manifests`` and ``tags`` are those of the local store, before the object store if there is
    one, and ``decisions`` before Redis.  A part that is not configured is None.
    """

    feeds: Feeds
    manifests: ManifestStore
    tags: TagStore
    decisions: DecisionStore
    caches: SharedCaches | None
    blocks: SharedBlocks | None
    view: View | None
    objects: SharedStore | None
    peers: Peers | None
    secret: Secret | None

    def prepared(self, config: Config) -> Callable[[], None]:
        """Return the function that applies another configuration of the same cluster.

        Raises:
            UserError: the secret or the credentials cannot be used.
        """
        secret = _read_secret(config) if self.secret else b""
        apply_to_objects = self.objects.prepared(config.cluster) if self.objects else None

        def apply() -> None:
            if apply_to_objects is not None:
                apply_to_objects()
            if self.peers is not None:
                self.peers.use(config.cluster.peers)
            if self.secret is not None and self.secret.change(secret):
                _log.info(_CHANGED, HANDOVER_SECONDS // 60, 2 * HANDOVER_SECONDS // 60)

        return apply


@asynccontextmanager
async def opened_cluster(
    config: Config,
    store: Store,
    metrics: Metrics,
    recorder: StatsRecorder,
    stopping: asyncio.Event,
    clock: Callable[[], Moment],
    *,
    first: bool,
) -> AsyncIterator[OpenedCluster]:
    """Take part in the cluster while the context is open; ``stopping``: it is about to be closed.

    Of several processes, only the ``first`` looks for the blocks of other replicas.

    Raises:
        UserError: the secret or a CA file cannot be read, or the object store cannot be used.
    """
    shared, figures, trust = config.cluster, ClusterMetrics(metrics.registry), _trust(config)
    async with AsyncExitStack() as stack:
        objects = secret = peers = leases = state = blocks = None
        if shared.secret_file:
            secret = Secret(_read_secret(config))
        if shared.objects:
            local = (store.blobs, store.manifests, store.tags, store.layout.uploads)
            uses = store.objects.used_after
            opening = opened_objects(shared, *local, uses, figures, secret)
            objects = await stack.enter_async_context(opening)
            recorder.watch_troubles(objects.problems)
        if shared.state:
            state = await stack.enter_async_context(
                opened_state(shared.state, figures, shared.state_timeout.seconds, shared.ca_file)
            )
            recorder.watch_troubles(lambda: (state.availability.problem,))
        if secret is not None and shared.advertise:
            own = shared.advertise.rstrip("/")
            peers = await stack.enter_async_context(
                opened_peers(secret, own, shared.peers, trust, figures)
            )
            if state is not None:
                leases = await stack.enter_async_context(opened_leases(state, own, secret))
        if secret is not None:
            own_list = (BlockFile(store.layout.blocks), partial(parts_of, store.catalogue))
            place = opened_place(None if objects is None else objects.bucket, state)
            blocks = await stack.enter_async_context(
                opened_blocks(*own_list, secret, place, peers, first=first)
            )
        decisions: DecisionStore = store.decisions
        if state is not None and secret is not None:
            decisions = SharedDecisions(store.decisions, state, secret, clock)
        slots = Slots(slot_limits(config), splitting(config))
        blobs = None if objects is None else objects.blobs
        yield OpenedCluster(
            Cluster(slots, blobs, leases, peers, figures, stopping),
            store.manifests if objects is None else objects.manifests,
            store.tags if objects is None else objects.tags,
            decisions,
            None if not (state and secret) else SharedCaches.of(state, secret, store.tags),
            blocks,
            None if peers is None else View(peers),
            objects,
            peers,
            secret,
        )


def _read_secret(config: Config) -> bytes:
    try:
        return config.cluster.secret()
    except OSError as error:
        raise UserError(f"[cluster] secret_file: {error.strerror}") from error


def _trust(config: Config) -> ssl.SSLContext:
    files = {"fetch": config.fetch.ca_file, "cluster": config.cluster.ca_file}
    for section, file in files.items():
        try:
            trusting((file,) if file else ())
        except OSError as error:
            raise UserError(f"[{section}] ca_file holds no certificate: {error}") from error
    return trusting(tuple(filter(None, files.values())))
