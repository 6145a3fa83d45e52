"""Everything that is built from one configuration, from the upstreams to the server options.

A reload makes a new generation; a former one is closed after its last request.  State that
outlives a configuration is in ``server.shared_state``.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from mirror.api.handlers import RegistryHandler, raw_path
from mirror.api.v1 import REPLICA_BLOCKS, ROOT, JsonApi, ReplicaPost
from mirror.config.model import Config
from mirror.config.policy import configured_blocks
from mirror.http.admission import REPLICA_FIELD
from mirror.http.sendfile import Sender
from mirror.http.server_options import Handler, Requests, ServerOptions
from mirror.http.token import Tokens
from mirror.server.access import HealthHandler, opened_admission, proxies, server_limits
from mirror.server.commands import Changes
from mirror.server.open_files import answer_limits, bounds, question_limits, slot_limits
from mirror.server.proxy import note_of, opened_pushes, proxy_handler
from mirror.server.pulls import Pulls, opened_pulls
from mirror.server.shared_state import SharedState, splitting
from mirror.server.site import Site
from mirror.server.status import page_routes
from mirror.server.upstreams import directory


@dataclass(frozen=True, slots=True)
class Routes:
    """Finds the handler of a request; ``reads`` and ``posts`` are keyed by path."""

    registry: Handler
    for_replicas: Handler | None
    reads: Mapping[str, Handler]
    posts: Mapping[str, Handler]

    def handler(self, request: web.BaseRequest) -> Handler:
        """The handler of a request; the registry API rejects paths that it does not know."""
        if request.method in {"GET", "HEAD"}:
            registry = self.registry
            if self.for_replicas is not None and REPLICA_FIELD in request.headers:
                registry = self.for_replicas
            return self.reads.get(raw_path(request), registry)
        if request.method == "POST":
            return self.posts.get(raw_path(request), self.registry)
        return self.registry


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """The parts built from one configuration."""

    config: Config
    options: ServerOptions
    pulls: Pulls

    async def over(self) -> None:
        """Wait for the end of all requests and fills that began under this configuration."""
        await self.options.requests.over()
        await self.pulls.finish()


@asynccontextmanager
async def opened_generation(config: Config, shared_state: SharedState) -> AsyncIterator[Generation]:
    """Build the server options and pulls of ``config``, and close them after the context.

    Raises:
        UserError: a file, a directory or a proxy named in ``config`` cannot be used.
    """
    async with AsyncExitStack() as stack:
        cluster = shared_state.cluster
        registries = await stack.enter_async_context(
            shared_state.upstreams.used(config, None if cluster is None else cluster.caches)
        )
        pulls = await stack.enter_async_context(opened_pulls(config, registries, shared_state))
        pushes = opened_pushes(config, shared_state.store.layout)
        handler = RegistryHandler(
            directory(config),
            pulls.blobs,
            pulls.manifests,
            pulls.listings,
            Sender(shared_state.sending, config.limits.stall_timeout.seconds),
            pulls.client_credentials,
            None if pushes is None else pushes.last,
        )
        tokens = Tokens(shared_state.store.layout.token)
        site = Site(config, shared_state, time.time(), pulls.manifests.gate)
        changes = Changes(config, shared_state, pulls).table()
        health, api = HealthHandler(shared_state), JsonApi(site.readings(), changes, tokens)
        reads, posts = page_routes(config, site, shared_state.store.objects, tokens, changes)
        reads |= {
            "/healthz": health.alive,
            "/readyz": health.ready,
            "/metrics": health.elsewhere if config.server.metrics_listen else health.metrics,
            **{f"{ROOT}{name}": api.read for name in api.readings},
        }
        posts |= {f"{ROOT}{name}": api.change for name in changes}
        check_replica = for_replicas = None
        if cluster is not None and cluster.blocks is not None and cluster.secret is not None:
            check_replica, blobs = cluster.secret.check, pulls.for_replicas
            replica = replace(handler, blobs=blobs, client_credentials=None, kind="replica")
            for_replicas = replica.answer
            posts[REPLICA_BLOCKS] = ReplicaPost(cluster.blocks.receive).answer
        proxy = None
        if pushes is not None:
            pushed = note_of(pushes, shared_state.store, shared_state.table)
            proxy = proxy_handler(config, handler, registries, shared_state.metrics, pushed)
        options = ServerOptions(
            Routes(handler.answer, for_replicas, reads, posts),
            stack.enter_context(opened_admission(config, check_replica)),
            proxies(config),
            server_limits(config),
            shared_state.table if bounds(config).hot else None,
            Requests(),
            proxy,
        )
        yield Generation(config, options, pulls)


class Generations:
    """Switches between generations while the mirror serves."""

    def __init__(self, shared_state: SharedState) -> None:
        self._shared_state = shared_state
        self._opened: dict[Generation, AsyncExitStack] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._current: Generation | None = None
        self._receivers: list[Callable[[ServerOptions], None]] = []

    @property
    def current(self) -> Generation:
        assert self._current is not None, "one is in force from the start"
        return self._current

    def tell(self, receiver: Callable[[ServerOptions], None]) -> None:
        self._receivers.append(receiver)

    async def open(self, config: Config) -> Generation:
        """Open a generation; ``begin`` puts it in force.

        Raises:
            UserError: something that ``config`` names cannot be used.
        """
        async with AsyncExitStack() as stack:
            generation = await stack.enter_async_context(
                opened_generation(config, self._shared_state)
            )
            self._opened[generation] = stack.pop_all()
        return generation

    async def drop(self, generation: Generation) -> None:
        await self._opened.pop(generation).aclose()

    def begin(self, generation: Generation) -> None:
        """Put a generation in force; the former one closes when its last request and fill end."""
        former, self._current = self._current, generation
        self._shared_state.slots.change(
            slot_limits(generation.config), splitting(generation.config)
        )
        rooms = self._shared_state.store.rooms
        rooms.questions.change(question_limits(generation.config))
        rooms.answers.change(answer_limits(generation.config))
        self._shared_state.blocks.configure(configured_blocks(generation.config))
        for receive in self._receivers:
            receive(generation.options)
        self._shared_state.table.close()
        if former is not None:
            for gone in former.config.enabled().keys() - generation.config.enabled().keys():
                self._shared_state.metrics.upstream_gone(gone)
            ending = asyncio.create_task(self._end(former), name="former generation")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, generation: Generation) -> None:
        await generation.over()
        await self.drop(generation)

    async def close(self) -> None:
        """Close all generations, without waiting for their requests and fills."""
        for ending in list(self._ending):
            ending.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for generation in list(self._opened):
            await self.drop(generation)


@asynccontextmanager
async def opened_generations(
    config: Config, shared_state: SharedState
) -> AsyncIterator[Generations]:
    """Open the generations; the one made of ``config`` is in force.

    Raises:
        UserError: something that ``config`` names cannot be used.
    """
    generations = Generations(shared_state)
    try:
        generations.begin(await generations.open(config))
        yield generations
    finally:
        await generations.close()
