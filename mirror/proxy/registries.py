"""Requests to a registry that the mirror answers in the registry's name (proxy mode).

Pulls are answered through the cache.  All other requests are passed on to the registry: pushes,
logins, token requests and the rest.  If ``allow``, ``deny`` or a policy exclude content of the
registry, ``limited`` decides which of these requests are passed on.
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
from mirror.http.exchange import EXCHANGE, Exchange
from mirror.http.responses import API_VERSION
from mirror.oci.challenge import with_realms
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
from mirror.proxy.passthrough import Passing
from mirror.proxy.permission import (
    HTTP_PORT,
    HTTPS_PORT,
    READING,
    REWRITING,
    TOKEN_METHODS,
    TOKEN_PATHS,
    checked_path,
    refusal,
)
from mirror.shares import FullError
from mirror.upstream.errors import UpstreamError
from mirror.upstream.responses import PassedAnswer
from mirror.upstream.routing import ForbiddenError, Target

_GREETINGS: Final = frozenset({200, 401})
_CHALLENGE: Final = "WWW-Authenticate"
_WRITING: Final = frozenset({"PUT", "DELETE"})
_REFUSALS: Final = frozenset({401, 403})
_FOUND: Final = 200
_LIMITED: Final = 429
_BROKEN: Final = 500


@dataclass(frozen=True, slots=True)
class Registries:
    """Answers requests in the name of registries.

    ``known`` are the upstreams for which the mirror has its own credentials.  ``pushed`` is called
    with the target and the tag or digest after a push.  ``patience`` (seconds) is how long a
    registry may take if the cache could answer in its place: Docker waits no longer than 15 s.
    """

    registry: RegistryHandler
    passing: Passing
    known: frozenset[str]
    pushed: Callable[[Target, str], Awaitable[None]]
    patience: float

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to the registry that the client addresses.

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
        try:
            if _asks_whether_it_is_there(request, endpoint):
                return await self._look(request, endpoint)
            return await self.registry.answer(request)
        except OciError as error:
            if _CHALLENGE in error.headers:
                challenge = self._reachable(request[EXCHANGE], error.headers[_CHALLENGE])
                error.headers = {**error.headers, _CHALLENGE: challenge}
            raise

    async def _greet(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass on ``/v2/``, for the registry's challenge; answer 200 if the registry fails."""
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

    async def _look(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        """Ask the registry whether this repository has the content.

        A client that pushes asks this, and uploads only missing content.  The cache knows only
        that the content exists in some repository; it answers if the registry does not.  A client
        that verifies signatures sends no GET for a manifest: have it for when the registry is down.
        """
        try:
            async with asyncio.timeout(self.patience):
                answer = await self._ask(request)
        except (UpstreamError, TimeoutError):
            return await self.registry.answer(request)
        if self._is_no_answer(request, answer):
            answer.close()
            return await self.registry.answer(request)
        if answer.status == _FOUND and isinstance(endpoint, ManifestEndpoint):
            with contextlib.suppress(OciError, UpstreamError, FullError):
                response = await self.registry.answer(request)
                answer.close()
                return response
        return await self.passing.relay(request, answer)

    async def _note(self, request: web.BaseRequest, answer: PassedAnswer) -> None:
        """Report a push, so that the tag's previous manifest counts as stale."""
        if request.method not in _WRITING or not 200 <= answer.status < 300:
            return
        with contextlib.suppress(OciError, InvalidName, ForbiddenError):
            endpoint = parse_endpoint("GET", raw_path(request))
            if isinstance(endpoint, ManifestEndpoint):
                target = self._target(request[EXCHANGE].connected, endpoint.name)
                await self.pushed(target, str(endpoint.reference))

    def _target(self, upstream: str, repository: str) -> Target:
        """Return a repository of the registry that the client connected to.

        Raises:
            InvalidName, ForbiddenError: there is no such repository, or it is not allowed.
        """
        return self.registry.directory.resolve(
            repository, prefix="", namespace=None, host="", connected=upstream
        )

    def _is_no_answer(self, request: web.BaseRequest, answer: PassedAnswer) -> bool:
        if answer.status in _REFUSALS:  # the mirror's credentials may help a client without any
            own = request[EXCHANGE].connected in self.known
            return own and "Authorization" not in request.headers
        return answer.status >= _BROKEN or answer.status == _LIMITED

    async def _ask(self, request: web.BaseRequest) -> PassedAnswer:
        exchange = request[EXCHANGE]
        exchange.upstream = exchange.connected
        path, (_, mark, query) = raw_path(request), request.raw_path.partition("?")
        if not path.startswith("/"):  # else the path would become a part of the host name
            raise OciError(ErrorCode.UNSUPPORTED, "a path begins with /", status=400)
        without: Collection[str] = ()
        if self.registry.is_limited(exchange.connected):
            path, without = await self._limited(request, path, query), REWRITING
        target = path + mark + query
        answer = await self.passing.ask(request, target, exchange.origin.host, without)
        for challenge in answer.headers.popall(_CHALLENGE, []):
            answer.headers.add(_CHALLENGE, self._reachable(exchange, challenge))
        return answer

    def _reachable(self, exchange: Exchange, challenge: str) -> str:
        """Return a challenge with the client's own address of the registry.

        A registry without TLS names an http address for tokens that it serves itself.  For a client
        that speaks TLS with the mirror, the password must not leave that connection: new clients
        reject such an address, older ones would use it.
        """

        def corrected(realm: str) -> str:
            with contextlib.suppress(ValueError):
                parts = urlsplit(realm)
                port = parts.port or HTTP_PORT
                usual = port if port == HTTPS_PORT else HTTP_PORT
                known = self.registry.directory.lookup_place(parts.hostname or "", port, usual)
                if parts.scheme == "http" and known == exchange.connected:
                    return parts._replace(scheme="https", netloc=exchange.origin.host).geturl()
            return realm

        secure = exchange.origin.scheme == "https"
        return with_realms(challenge, corrected) if secure else challenge

    async def _limited(self, request: web.BaseRequest, path: str, query: str) -> str:
        """Return the path to pass on to a registry with ``allow`` or ``deny`` rules; else raise."""
        upstream = request[EXCHANGE].connected
        if "#" in request.raw_path:  # the rest of the path would be cut off
            raise OciError(ErrorCode.UNSUPPORTED, "a request's target has no #", status=400)
        checked = checked_path(request.method, path, query, partial(self._target, upstream))
        if checked is not None:
            self._check_policy(request, checked)
            return checked
        if request.method in TOKEN_METHODS and (
            path in TOKEN_PATHS or await self._gives_tokens(request, path)
        ):
            return path
        raise refusal(upstream)

    def _check_policy(self, request: web.BaseRequest, path: str) -> None:
        """Check that the registry is not asked for content that the mirror does not give out."""
        gate = self.registry.manifests.gate
        if request.method not in READING or not gate.limits(request[EXCHANGE].connected):
            return
        try:
            endpoint = parse_endpoint(request.method, path)
        except OciError:  # such as an upload
            return
        if isinstance(endpoint, ManifestEndpoint | BlobEndpoint):
            if request.body_exists:  # the mirror answers all other pulls
                raise OciError(ErrorCode.UNSUPPORTED, "a pull has no body", status=400)
            self.registry.check(request, endpoint)

    async def _gives_tokens(self, request: web.BaseRequest, path: str) -> bool:
        """Whether the registry's own challenge names a token service at this path."""
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
    """Return the endpoint of a pull; None for other requests."""
    if request.method not in {"GET", "HEAD"} or request.body_exists:
        return None
    try:
        endpoint = parse_endpoint(request.method, raw_path(request))
    except OciError:
        return None
    return None if endpoint.prefix else endpoint


def _asks_whether_it_is_there(request: web.BaseRequest, endpoint: Endpoint) -> bool:
    # A request that names another registry is not for this one to answer.
    named = "ns" in request.rel_url.query or "OCI-Namespace" in request.headers
    if request.method != "HEAD" or named:
        return False
    if isinstance(endpoint, ManifestEndpoint):
        return isinstance(endpoint.reference, Digest)
    return isinstance(endpoint, BlobEndpoint)
