"""What clients ask of a registry when the mirror stands in for it.

What is a pull goes the ordinary way through the cache.  Everything else is the registry's own
business and passed on to it: pushes, logins, token services, whatever else it serves.  Where
``allow`` or ``deny`` keep a repository back, ``limited`` says what of that is passed on.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from mirror.api.handlers import RegistryHandler, raw_path
from mirror.http.exchange import EXCHANGE
from mirror.http.responses import API_VERSION
from mirror.oci.digest import Digest
from mirror.oci.endpoint import (
    BlobEndpoint,
    Endpoint,
    ManifestEndpoint,
    Ping,
    parse_endpoint,
)
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.reference import InvalidName
from mirror.proxy.limited import (
    REWRITING,
    TOKEN_METHODS,
    TOKEN_PATHS,
    checked_path,
    refusal,
)
from mirror.proxy.passthrough import Passing
from mirror.proxy.permission import HTTPS_PORT
from mirror.upstream.errors import UpstreamError
from mirror.upstream.responses import PassedAnswer
from mirror.upstream.routing import ForbiddenError, Target

_GREETINGS: Final = frozenset({200, 401})
_WRITING: Final = frozenset({"PUT", "DELETE"})
_REFUSALS: Final = frozenset({401, 403})
_LIMITED: Final = 429
_BROKEN: Final = 500


@dataclass(frozen=True, slots=True)
class Registries:
    """Answers in the name of registries.

    ``known`` are the upstreams where the mirror has credentials of its own; ``pushed`` is told of
    a repository, and of the tag or digest, where something was written.  Where the cache can answer
    for a registry it is given ``patience`` (seconds): Docker itself has no more than 15 s.
    """

    registry: RegistryHandler
    passing: Passing
    known: frozenset[str]
    pushed: Callable[[Target, str], Awaitable[None]]
    patience: float

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to the registry that the client is connected to, as it believes.

        Raises:
            OciError, UpstreamError, ForbiddenError: see ``responses.error_of``.
        """
        endpoint = _pull(request)
        if endpoint is None:
            answer = await self._ask(request)
            await self._note(request, answer)
            return await self.passing.relay(request, answer)
        if isinstance(endpoint, Ping):
            return await self._greet(request)
        if _asks_whether_it_is_there(request, endpoint):
            return await self._look(request)
        return await self.registry.answer(request)

    async def _greet(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the registry wants to know of clients; nothing, while it cannot be asked."""
        request[EXCHANGE].kind = Ping.kind
        try:
            async with asyncio.timeout(self.patience):
                answer = await self._ask(request)
        except (UpstreamError, TimeoutError) as error:
            request[EXCHANGE].detail = str(error) or "the registry does not answer"
            return web.json_response({}, headers=API_VERSION)
        if answer.status in _GREETINGS:
            return await self.passing.relay(request, answer)
        request[EXCHANGE].detail = f"the registry answered {answer.status}"
        answer.close()
        return web.json_response({}, headers=API_VERSION)

    async def _look(self, request: web.BaseRequest) -> web.StreamResponse:
        """Whether the registry has something in this very repository.

        Who pushes asks so, and uploads what is not there; the cache would only know that it was
        somewhere.
        """
        try:
            async with asyncio.timeout(self.patience):
                answer = await self._ask(request)
        except (UpstreamError, TimeoutError):
            return await self.registry.answer(request)
        if self._is_no_answer(request, answer):
            answer.close()
            return await self.registry.answer(request)
        return await self.passing.relay(request, answer)

    async def _note(self, request: web.BaseRequest, answer: PassedAnswer) -> None:
        """After a push what a tag meant before must not be given out as fresh."""
        if request.method not in _WRITING or not 200 <= answer.status < 300:
            return
        with contextlib.suppress(OciError, InvalidName, ForbiddenError):
            endpoint = parse_endpoint("GET", raw_path(request))
            if isinstance(endpoint, ManifestEndpoint):
                target = self.registry.directory.resolve(
                    endpoint.name,
                    prefix="",
                    namespace=None,
                    host="",
                    connected=request[EXCHANGE].connected,
                )
                await self.pushed(target, str(endpoint.reference))

    def _is_no_answer(self, request: web.BaseRequest, answer: PassedAnswer) -> bool:
        if answer.status in _REFUSALS:  # the mirror may be let in where a nobody is not
            own = request[EXCHANGE].connected in self.known
            return own and "Authorization" not in request.headers
        return answer.status >= _BROKEN or answer.status == _LIMITED

    async def _ask(self, request: web.BaseRequest) -> PassedAnswer:
        exchange = request[EXCHANGE]
        exchange.upstream = exchange.connected
        path, (_, mark, query) = raw_path(request), request.raw_path.partition("?")
        if not path.startswith("/"):  # it would become part of the host's name
            raise OciError(ErrorCode.UNSUPPORTED, "a path begins with /", status=400)
        without: Collection[str] = ()
        if self.registry.directory.is_limited(exchange.connected):
            path, without = await self._limited(request, path, query), REWRITING
        target = path + mark + query
        return await self.passing.ask(request, target, exchange.origin.host, without)

    async def _limited(self, request: web.BaseRequest, path: str, query: str) -> str:
        """The path to pass on to a registry that holds repositories which may not be had.

        Raises:
            OciError, InvalidName, ForbiddenError: the request is not passed on.
        """
        upstream = request[EXCHANGE].connected
        permit = partial(
            self.registry.directory.resolve, prefix="", namespace=None, host="", connected=upstream
        )
        if "#" in request.raw_path:  # what is behind it would be cut off
            raise OciError(ErrorCode.UNSUPPORTED, "a request's target has no #", status=400)
        checked = checked_path(request.method, path, query, permit)
        if checked is not None:
            return checked
        if request.method in TOKEN_METHODS and (
            path in TOKEN_PATHS or await self._gives_tokens(request, path)
        ):
            return path
        raise refusal(upstream)

    async def _gives_tokens(self, request: web.BaseRequest, path: str) -> bool:
        """Whether the registry's own challenge sends clients to a path."""
        exchange = request[EXCHANGE]
        with contextlib.suppress(UpstreamError, TimeoutError, ValueError):
            async with asyncio.timeout(self.patience):
                realms = await self.passing.realms(exchange.connected, exchange.origin.host)
            for parts in map(urlsplit, realms):
                place = parts.hostname or "", parts.port or HTTPS_PORT
                known = self.registry.directory.lookup_place(*place, HTTPS_PORT)
                if parts.path == path and known == exchange.connected:
                    return True
        return False


def _pull(request: web.BaseRequest) -> Endpoint | None:
    """What a request wants to pull; None where it is something else."""
    if request.method not in {"GET", "HEAD"} or request.body_exists:
        return None
    try:
        endpoint = parse_endpoint(request.method, raw_path(request))
    except OciError:
        return None
    return None if endpoint.prefix else endpoint


def _asks_whether_it_is_there(request: web.BaseRequest, endpoint: Endpoint) -> bool:
    if request.method != "HEAD" or "ns" in request.rel_url.query:
        return False
    if isinstance(endpoint, ManifestEndpoint):
        return isinstance(endpoint.reference, Digest)
    return isinstance(endpoint, BlobEndpoint)
