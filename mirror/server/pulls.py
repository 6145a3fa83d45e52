"""The pulls: shared ones, and private ones for clients with their own credentials."""

import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mirror.api.client_credentials import ClientCredentials
from mirror.config.addresses import TcpAddress
from mirror.config.agreement import taking_credentials, without_host
from mirror.config.model import Config, UpstreamConfig
from mirror.config.policy import configured_pins, configured_rules
from mirror.oci.manifest import Descriptor
from mirror.pull.blobs import BlobPulls
from mirror.pull.cooldown import Cooldown
from mirror.pull.fills import Fills
from mirror.pull.gate import Gate, GatedBlobs, GatedManifests
from mirror.pull.listings import FreshPage, ListingPulls
from mirror.pull.manifest_source import ManifestSource
from mirror.pull.manifests import ManifestPulls
from mirror.pull.prefetch import Prefetch
from mirror.pull.private import AuthorizedBlobs, AuthorizedListings, AuthorizedManifests
from mirror.pull.private_access import PrivateAccess
from mirror.pull.refusals import RecentRefusals, Refusals
from mirror.server.shared_state import SharedState
from mirror.server.store import Private, Store
from mirror.store.interface import MOST_PAGE_BYTES
from mirror.ttl_cache import TtlCache
from mirror.upstream.credentials import Principals
from mirror.upstream.endpoints import Endpoints

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

    ``begun`` lists every ``BlobPulls`` that may have fills.
    """

    begun: Sequence[BlobPulls]
    blobs: GatedBlobs
    manifests: GatedManifests
    listings: ListingPulls | AuthorizedListings
    client_credentials: ClientCredentials | None = None

    async def finish(self) -> None:
        """Wait for the end of all fills."""
        for blobs in self.begun:
            await blobs.finish()


@asynccontextmanager
async def opened_pulls(
    config: Config, registries: Mapping[str, Endpoints], shared_state: SharedState
) -> AsyncIterator[Pulls]:
    """Answer for content while the context is open."""
    negatives: TtlCache[str] = TtlCache(config.tags.negative_max_age.seconds, _REFUSALS, 6 * _MIB)
    max_age, stale = config.tags.max_age.seconds, config.tags.stale_if_error.seconds
    freshness: TtlCache[Descriptor] = TtlCache(
        max_age, _FRESH_TAGS, 20 * _MIB, lambda _: _DESCRIPTOR_BYTES
    )
    pages: TtlCache[FreshPage] = TtlCache(
        max_age, _PAGES, 16 * _MIB, lambda page: len(page[0]), MOST_PAGE_BYTES
    )
    store, metrics, begun = shared_state.store, shared_state.metrics, list[BlobPulls]()
    rules = configured_rules(config)
    gate = Gate(shared_state.blocks, configured_pins(config), rules, metrics)

    def gated(
        blobs: BlobPulls | AuthorizedBlobs,
        manifests: ManifestPulls | AuthorizedManifests,
        listings: ListingPulls | AuthorizedListings,
    ) -> tuple[GatedBlobs, GatedManifests, ListingPulls | AuthorizedListings]:
        keep = store.keeping.keep_meant
        cooldown = Cooldown(store.decisions, shared_state.clock, keep, manifests, blobs)
        signatures = None
        if any(rule.keys for rule in rules):
            # Imported late: it costs 8 MiB, which mirrors without keys should not pay.
            from mirror.pull.signatures import Signatures  # noqa: PLC0415

            names = {name: _registry_names(name, each) for name, each in config.enabled().items()}
            signatures = Signatures(cooldown, listings, names.__getitem__)
        gated_manifests = GatedManifests(gate, manifests, cooldown, signatures, prefetch)
        return GatedBlobs(gate, blobs, prefetch), gated_manifests, listings

    async with AsyncExitStack() as stack:

        def made(
            kept: Store | Private, fills: Fills
        ) -> tuple[BlobPulls, ManifestPulls, ListingPulls]:
            refusals = Refusals(negatives, kept.listings, stale)
            blobs = BlobPulls(registries, kept.blobs, refusals, metrics, shared_state.slots, fills)
            begun.append(blobs)
            source = ManifestSource(registries, kept.manifests, kept.tags, metrics, fills.room)
            manifests = ManifestPulls(source, kept.tags, freshness, refusals, stale)
            answers = store.rooms.answers
            listings = ListingPulls(registries, pages, kept.listings, refusals, answers, stale)
            for pulls in (blobs, manifests, listings):
                stack.push_async_callback(pulls.close)
            return blobs, manifests, listings

        public = made(store, shared_state.fills)
        prefetch = None
        # With several workers another one may answer for the layer, and would count a hit.
        if config.fill.prefetch and config.server.processes() == 1:
            fills, slots = shared_state.fills, shared_state.slots
            prefetch = Prefetch(public[0], fills, slots, gate.withholds)
            stack.callback(prefetch.close)
        # Every client sees the ledger.
        stack.enter_context(shared_state.recorder.watching(public[0]))
        if not (taking_credentials(config.upstreams) or config.proxy.listen):
            yield Pulls(begun, *gated(*public))
            return
        private = made(store.private, shared_state.private_fills)
        grants: TtlCache[bool] = TtlCache(
            config.access.grant_max_age.seconds, _GRANTS, 6 * _MIB, lambda _: 0
        )
        access = PrivateAccess(registries, grants, store.private.links, RecentRefusals(negatives))
        stack.push_async_callback(access.close)
        yield Pulls(
            begun,
            *gated(
                AuthorizedBlobs(access, public[0], private[0]),
                AuthorizedManifests(access, public[1], private[1]),
                AuthorizedListings(access, public[2], private[2]),
            ),
            _client_credentials(config, access),
        )


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
