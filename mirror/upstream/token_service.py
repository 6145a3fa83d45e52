"""Bearer tokens of a registry, by the token authentication of the distribution project."""

import asyncio
import json
import math
from typing import Final, Protocol
from weakref import WeakValueDictionary

from yarl import URL

from mirror.oci.challenge import Challenge
from mirror.upstream.errors import DeniedError, UnauthorizedError, UnavailableError
from mirror.upstream.login import Login
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.transport import Request, Transport

_DEFAULT_EXPIRY_SECONDS: Final = 60.0  # of the token specification, if expires_in is missing
_MAX_EXPIRY_SECONDS: Final = 86400.0
_EXPIRY_MARGIN: Final = 0.1
_MAX_ANSWER_BYTES: Final = 256 * 1024


class TokenCache(Protocol):
    """Stores tokens until shortly before they expire."""

    async def lookup(self, name: str) -> str | None:
        """The token, or None."""

    async def put(self, name: str, token: str, ttl: float) -> None:
        """Store a token for ``ttl`` seconds."""

    async def forget(self, name: str) -> None:
        """Drop a token."""


class TokenService:
    """Fetches the tokens of one client of a registry, and stores them."""

    def __init__(
        self,
        upstream: str,
        url: URL,
        transport: Transport,
        limits: RateLimits,
        tokens: TokenCache,
        login: Login,
        owner: str,
    ) -> None:
        """``url`` is that of the registry; ``owner`` identifies the client, see ``auth``."""
        self._upstream = upstream
        self._url = url
        self._transport = transport
        self._limits = limits
        self._tokens = tokens
        self._login = login
        self._owner = owner
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def token(self, challenge: Challenge, repository: str) -> str:
        """Return a token for a repository (empty: for none), from the cache if possible.

        Raises:
            UpstreamError: the token cannot be fetched.
        """
        scope = _scope(repository)
        name = self._name(scope)
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            token = await self._tokens.lookup(name)
            if token is None:
                token, expires_in = await self._fetch(challenge, scope)
                await self._tokens.put(name, token, expires_in * (1 - _EXPIRY_MARGIN))
            return token

    async def forget(self, repository: str, refused: str | None = None) -> None:
        """Drop the token for a repository; if ``refused`` is given, only that token."""
        name = self._name(_scope(repository))
        # Another request may have fetched a new token while this one was refused.
        if refused is None or await self._tokens.lookup(name) == refused:
            await self._tokens.forget(name)

    def _name(self, scope: str) -> str:
        return f"{self._url} {scope} {self._owner}"

    async def _fetch(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        realm = self._realm(challenge)
        query = {"scope": scope} if scope else {}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        async with self._login.use() as credentials:
            authorization = None if credentials is None else credentials.basic()
            request = Request(
                "GET", realm.update_query(query), "token", authorization=authorization
            )
            token = await self._answer(request, f"{realm.origin()}", scope)
            self._login.accept()
            return token

    async def _answer(self, request: Request, server: str, scope: str) -> tuple[str, float]:
        response = await self._transport.send(request, self._limits)
        try:
            if response.status in {401, 403}:
                error = UnauthorizedError if response.status == 401 else DeniedError
                raise error(self._upstream, f"{server} gives no token {scope}".rstrip())
            if response.status != 200:
                raise UnavailableError(
                    self._upstream, f"{server} answered {response.status} to a token call"
                )
            return parse_token(await self._transport.read(response, "token", _MAX_ANSWER_BYTES))
        except ValueError as error:
            raise UnavailableError(self._upstream, f"{server} answered no token") from error
        finally:
            response.release()

    def _realm(self, challenge: Challenge) -> URL:
        """Return the URL of the token service, if the mirror may send credentials to it.

        A realm is only as trustworthy as the connection that named it: with TLS the registry
        may name any https service, without TLS only its own host.

        Raises:
            UnavailableError: the realm is not trusted.
        """
        try:
            realm = URL(challenge.parameters.get("realm", ""))
        except ValueError:
            realm = URL()
        over_tls = self._url.scheme == "https" and realm.scheme == "https"
        same_host = realm.scheme == self._url.scheme and realm.host == self._url.host
        if not (over_tls or same_host) or not realm.host:
            raise UnavailableError(
                self._upstream, f"names a token service that cannot be trusted: {realm.host}"
            )
        return realm


def _scope(repository: str) -> str:
    return f"repository:{repository}:pull" if repository else ""


def parse_token(body: bytes) -> tuple[str, float]:
    """Return the token in an answer of a token service, and how long it is valid in seconds.

    Raises:
        ValueError: there is none.
    """
    try:
        answer = json.loads(body)
    except RecursionError:
        raise ValueError("not JSON") from None
    if not isinstance(answer, dict):
        raise ValueError("JSON, but no object")
    token = answer.get("token") or answer.get("access_token")
    expires_in = answer.get("expires_in", _DEFAULT_EXPIRY_SECONDS)
    if not isinstance(token, str) or not token or not token.isprintable():
        raise ValueError("no token in the answer")
    number = isinstance(expires_in, int | float) and not isinstance(expires_in, bool)
    if not number or math.isnan(expires_in):
        raise ValueError("expires_in is not a number")
    return token, min(max(expires_in, 1.0), _MAX_EXPIRY_SECONDS)
