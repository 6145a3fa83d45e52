"""The pulls: shared ones, and private ones for clients with their own credentials."""

import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from mirror.api.client_credentials import ClientCredentials
from mirror.config.addresses import TcpAddress
from mirror.config.model import Config, UpstreamConfig
from mirror.config.policy import configured_pins, configured_rules
from mirror.config.upstreams import taking_credentials, without_host
from mirror.oci.manifest import Descriptor
from mirror.pull.blobs import BlobPulls, BlobsForReplicas, Fills
from mirror.pull.cooldown import Cooldown
from mirror.pull.feed import Feeds
from mirror.pull.gate import Elsewhere, Gate, GatedBlobs
from mirror.pull.gated_manifests import GatedManifests
from mirror.pull.listings import FreshPage, ListingPulls
from mirror.pull.manifest_source import ManifestSource
from mirror.pull.manifests import ManifestPulls
from mirror.pull.prefetch import Prefetch
from mirror.pull.private import (
    AuthorizedBlobs,
    AuthorizedListings,
    AuthorizedManifests,
    PrivateAccess,
)
from mirror.pull.refusals import RecentRefusals, Refusals
from mirror.server.shared_state import SharedState
from mirror.server.store import Private, Store
from mirror.store.interface import MOST_PAGE_BYTES, ManifestStore, TagStore
from mirror.ttl_cache import TtlCache
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.login import Principals

if TYPE_CHECKING:
    from mirror.cluster.values import SharedCaches
    from mirror.server.cluster import OpenedCluster

_log = logging.getLogger(__name__)
_MIB: Final = 1024 * 1024
_PAGES: Final = 1_000
_FRESH_TAGS: Final = 50_000
_DESCRIPTOR_BYTES: Final = 512  # in memory
_REFUSALS: Final = 25_000
_GRANTS: Final = 25_000
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Pulls:
    """The sources of content; ``client_credentials`` is None if clients cannot send their own.

    ``begun`` lists every ``BlobPulls`` that may have fills.  ``for_replicas``: public blobs, for
    the other replicas of a cluster.
    """

    begun: Sequence[BlobPulls]
    for_replicas: GatedBlobs
    blobs: GatedBlobs
    manifests: GatedManifests
    listings: ListingPulls | AuthorizedListings
    client_credentials: ClientCredentials | None = None

    async def finish(self) -> None:
        for blobs in self.begun:
            await blobs.finish()


@dataclass(frozen=True, slots=True)
class _Caches:
    """What upstreams have said lately."""

    negatives: TtlCache[str]
    freshness: TtlCache[Descriptor]
    pages: TtlCache[FreshPage]

    @classmethod
    def of(cls, config: Config, shared: "SharedCaches | None") -> Self:
        """Return caches in memory, before those that all replicas share."""
        tags = config.tags
        return cls(
            TtlCache(
                *(tags.negative_max_age.seconds, _REFUSALS, 6 * _MIB),
                shared=None if shared is None else shared.refusals,
            ),
            TtlCache(
                *(tags.max_age.seconds, _FRESH_TAGS, 20 * _MIB, lambda _: _DESCRIPTOR_BYTES),
                shared=None if shared is None else shared.freshness,
            ),
            TtlCache(
                *(tags.max_age.seconds, _PAGES, 16 * _MIB, lambda page: len(page[0])),
                largest=MOST_PAGE_BYTES,
                shared=None if shared is None else shared.pages,
            ),
        )


@asynccontextmanager
async def opened_pulls(
    config: Config, registries: Mapping[str, Endpoints], shared_state: SharedState
) -> AsyncIterator[Pulls]:
    """Answer for content while the context is open."""
    cluster, stale = shared_state.cluster, config.tags.stale_if_error.seconds
    # What is private stays in this replica.
    caches = hidden = _Caches.of(config, None)
    if cluster is not None and cluster.caches is not None:
        caches = _Caches.of(config, cluster.caches)
    store, metrics, begun = shared_state.store, shared_state.metrics, list[BlobPulls]()
    rules = configured_rules(config)
    gate = Gate(shared_state.blocks, configured_pins(config), rules, metrics)

    def gated(
        blobs: BlobPulls | AuthorizedBlobs,
        manifests: ManifestPulls | AuthorizedManifests,
        listings: ListingPulls | AuthorizedListings,
    ) -> tuple[GatedBlobs, GatedManifests, ListingPulls | AuthorizedListings]:
        keep = store.keeping.keep_meant
        cooldown = Cooldown(
            *(store.decisions, shared_state.clock, keep, store.lookup_link, manifests, blobs),
            any(rule.check_digests for rule in rules),
        )
        signatures = None
        if any(rule.needs_signature for rule in rules):
            # Imported late: it costs 8 MiB, which mirrors without keys should not pay.
            from mirror.pull.signatures import Signatures  # noqa: PLC0415

            names = {name: _registry_names(name, each) for name, each in config.enabled().items()}
            signatures = Signatures(cooldown, listings, names.__getitem__)
        gated_manifests = GatedManifests(gate, manifests, cooldown, signatures, prefetch)
        return (
            GatedBlobs(gate, blobs, prefetch, _elsewhere(config, cluster)),
            gated_manifests,
            listings,
        )

    async with AsyncExitStack() as stack:

        def made(
            kept: Store | Private,
            manifest_stores: tuple[ManifestStore, TagStore],
            caches: _Caches,
            fills: Fills,
            feeds: Feeds | None = None,
        ) -> tuple[BlobPulls, ManifestPulls, ListingPulls]:
            refusals = Refusals(caches.negatives, kept.listings, stale)
            downloads = (shared_state.slots, fills, feeds)
            blobs = BlobPulls(registries, kept.blobs, refusals, metrics, *downloads)
            begun.append(blobs)
            tags = manifest_stores[1]
            source = ManifestSource(
                *(registries, *manifest_stores, metrics, fills.room),
                lambda: shared_state.clock().wall,
            )
            manifests = ManifestPulls(source, tags, caches.freshness, refusals, stale)
            answers = store.rooms.answers
            listings = ListingPulls(
                *(registries, caches.pages, kept.listings, refusals, answers, stale)
            )
            for pulls in (blobs, manifests, listings):
                stack.push_async_callback(pulls.close)
            return blobs, manifests, listings

        stores: tuple[ManifestStore, TagStore] = store.manifests, store.tags
        if cluster is not None:
            stores = cluster.manifests, cluster.tags
        feeds = None if cluster is None else cluster.feeds
        public = made(store, stores, caches, shared_state.fills, feeds)
        for_replicas = GatedBlobs(gate, BlobsForReplicas(public[0]))
        prefetch = None
        # Another worker may answer for the layer, and would count a hit; another replica would
        # download it again if the client has left this one in the meantime.
        if config.fill.prefetch and config.server.processes() == 1 and not config.cluster.peers:
            fills, slots = shared_state.fills, shared_state.slots
            prefetch = Prefetch(public[0], fills, slots, gate.withholds)
            stack.callback(prefetch.close)
        # Every client sees the ledger.
        stack.enter_context(shared_state.recorder.watching(public[0]))
        if not (taking_credentials(config.upstreams) or config.proxy.listen):
            yield Pulls(begun, for_replicas, *gated(*public))
            return
        own = store.private
        private = made(own, (own.manifests, own.tags), hidden, shared_state.private_fills)
        grants: TtlCache[bool] = TtlCache(
            config.access.grant_max_age.seconds, _GRANTS, 6 * _MIB, lambda _: 0
        )
        refused = RecentRefusals(hidden.negatives)
        access = PrivateAccess(registries, grants, store.private.links, refused)
        stack.push_async_callback(access.close)
        yield Pulls(
            begun,
            for_replicas,
            *gated(
                AuthorizedBlobs(access, public[0], private[0]),
                AuthorizedManifests(access, public[1], private[1]),
                AuthorizedListings(access, public[2], private[2]),
            ),
            _client_credentials(config, access),
        )


def _elsewhere(config: Config, cluster: "OpenedCluster | None") -> Elsewhere | None:
    if cluster is None or cluster.objects is None:
        return None
    networks = list(map(ip_network, config.cluster.redirect_networks))
    return partial(cluster.objects.redirects.address, networks)


def _registry_names(name: str, upstream: UpstreamConfig) -> frozenset[str]:
    """The names of an upstream in signatures: its own, and the addresses of the registry."""
    addresses = (urlsplit(url).netloc for url in (upstream.url, *upstream.mirrors))
    return frozenset({name, *upstream.aliases, *upstream.hosts, *addresses})


def _client_credentials(config: Config, access: PrivateAccess) -> ClientCredentials:
    server = config.server
    open_to_all = any(
        isinstance(place, TcpAddress) and not place.is_local for place in server.addresses()
    )
    taking = frozenset(taking_credentials(config.upstreams))
    if taking and open_to_all and not (server.tls_certificate or server.trusted_proxies):
        _log.warning("clients send their passwords in the clear: set [server] tls_certificate")
    hosts = {
        host.lower(): name for name, upstream in config.enabled().items() for host in upstream.hosts
    }
    principals = Principals(secrets.token_bytes(_KEY_BYTES))
    otherwise = next(iter(without_host(config.upstreams)), "")
    return ClientCredentials(hosts, taking, otherwise, principals, access.greet)
