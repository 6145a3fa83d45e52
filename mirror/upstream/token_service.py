"""Bearer tokens of a registry, by the token authentication of the distribution project."""

import asyncio
import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from yarl import URL

from mirror.oci.challenge import Challenge
from mirror.ttl_cache import SharedValues, TtlCache
from mirror.upstream.errors import (
    DeniedError,
    LoginRefusedError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)
from mirror.upstream.login import Credentials, Login
from mirror.upstream.quirks import PLACEHOLDER_SCOPES, quirks_of
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.transport import Request, Transport, whole

_DEFAULT_EXPIRY_SECONDS: Final = 60.0  # of the token specification, if expires_in is missing
_MAX_EXPIRY_SECONDS: Final = 86400.0
_EXPIRY_MARGIN: Final = 0.1
_MAX_ANSWER_BYTES: Final = 256 * 1024
#: HEAD was refused with a new token: for so long, the GET that follows it does not renew the token.
_REFUSED_SECONDS: Final = 10.0


@dataclass(slots=True)
class Tried:
    """The authentication tried so far in one exchange with a registry, by ``method``.

    ``fresh`` are the tokens fetched in this exchange.
    """

    method: str
    basic: bool = False
    tokens: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)


class TokenService:
    """Fetches the tokens of one client of a registry, and stores them."""

    def __init__(
        self,
        upstream: str,
        url: URL,
        transport: Transport,
        limits: RateLimits,
        tokens: TtlCache[str],
        login: Login,
        owner: str,
        shared: SharedValues[str] | None = None,
    ) -> None:
        """``url`` is that of the registry; ``owner`` identifies the client, see ``auth``.

        ``shared``: the tokens that other mirrors have fetched with the same login.
        """
        self._upstream = upstream
        self._url = url
        self._transport = transport
        self._limits = limits
        self._tokens = tokens
        self._login = login
        self._owner = owner
        self._shared = shared
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def untried(self, challenge: Challenge, repository: str, tried: "Tried") -> str | None:
        """Return a token that was not refused in this exchange, from the cache if possible.

        The scope is built here: ghcr.io's challenge has a placeholder, Docker Hub's has no scope.
        That of the challenge is used if the own one is refused.

        Returns:
            None if the registry has refused all tokens that it could take.

        Raises:
            UpstreamError: the token cannot be fetched.
        """
        named = challenge.parameters.get("scope", "")
        own = _scope(repository)
        scopes = [own] if named in {own, "", *PLACEHOLDER_SCOPES} else [own, named]
        token = await self._renewed(challenge, scopes, tried)
        if token is None and len(scopes) > 1:
            with contextlib.suppress(DeniedError, UnauthorizedError):
                token = await self._renewed(challenge, scopes[1:], tried)
            if token is not None:  # the next request begins with it
                await self._tokens.put(self._name(own), token, _DEFAULT_EXPIRY_SECONDS)
        return token

    async def forget(self, repository: str) -> None:
        """Drop the token for a repository."""
        await self._tokens.forget(self._name(_scope(repository)))

    async def _renewed(
        self, challenge: Challenge, scopes: Sequence[str], tried: "Tried"
    ) -> str | None:
        """Return the token for ``scopes``; if the registry has refused it, renew it once."""
        name = self._name(scopes[0])
        token = await self._token(challenge, scopes, tried)
        if token in tried.tokens:
            mark = f"{name} refused by HEAD"
            if token in tried.fresh:
                if tried.method == "HEAD":
                    await self._tokens.put(mark, token, _REFUSED_SECONDS)
                return None
            if tried.method != "HEAD" and await self._tokens.lookup(mark) == token:
                await self._tokens.forget(mark)
                return None
            # Another request may have fetched a new token while this one was refused.
            if await self._tokens.lookup(name) == token:
                await self._tokens.forget(name)
            token = await self._token(challenge, scopes, tried)
        if token in tried.tokens:
            return None
        tried.tokens.add(token)
        return token

    async def _token(self, challenge: Challenge, scopes: Sequence[str], tried: "Tried") -> str:
        name = self._name(scopes[0])
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            token = await self._tokens.lookup(name)
            if token is None:
                token, ttl = await self._lookup_shared(name, tried) or ("", 0.0)
                if not token:
                    token, expires_in = await self._fetch(challenge, scopes)
                    tried.fresh.add(token)
                    ttl = expires_in * (1 - _EXPIRY_MARGIN)
                    if self._shared is not None:
                        await self._shared.put(name, token, ttl)
                await self._tokens.put(name, token, ttl)
            return token

    async def _lookup_shared(self, name: str, tried: "Tried") -> tuple[str, float] | None:
        """Return the token of another mirror, unless the registry has just refused it."""
        found = None if self._shared is None else await self._shared.lookup(name)
        if found is None or found[0] in tried.tokens:
            return None
        return found[0], min(found[1], _MAX_EXPIRY_SECONDS)

    def _name(self, scope: str) -> str:
        return f"{self._url} {scope} {self._owner}"

    async def _fetch(self, challenge: Challenge, scopes: Sequence[str]) -> tuple[str, float]:
        """Fetch a token for the first scope that the token service accepts."""
        first, *others = scopes
        try:
            return await self._fetch_one(challenge, first)
        except LoginRefusedError:
            raise
        except (RefusedError, UnavailableError):
            if not others:
                raise
            with contextlib.suppress(RefusedError, UnavailableError):
                return await self._fetch_one(challenge, others[0])
            raise

    async def _fetch_one(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        realm = self._realm(challenge)
        if service := challenge.parameters.get("service"):
            realm = realm.update_query(service=service)
        url = realm.update_query(scope=scope) if scope else realm
        for last in (False, True):
            async with self._login.use() as credentials:
                try:
                    token = await whole(partial(self._call, url, credentials, scope))
                except RefusedError as error:
                    if credentials is None:
                        raise
                    if last or not await self._login.refresh(credentials):
                        await self._judge(realm if scope else None, credentials, error)
                        raise
                else:
                    self._login.accept()
                    return token
        raise AssertionError("the loop returns or raises")

    async def _judge(
        self, realm: URL | None, credentials: Credentials, refusal: RefusedError
    ) -> None:
        """Raise LoginRefusedError if a refusal is not about the scope alone."""
        if not self._login.own:
            return
        if realm is not None and (self._login.proven or isinstance(refusal, DeniedError)):
            with contextlib.suppress(RefusedError):
                if quirks_of(self._upstream, self._url.host).bare_tokens:
                    await self._call(realm, credentials, "")
                    self._login.accept()
                return
        self._login.refuse(credentials)

    async def _call(
        self, url: URL, credentials: Credentials | None, scope: str
    ) -> tuple[str, float]:
        authorization = None if credentials is None else credentials.basic()
        request = Request("GET", url, "token", authorization=authorization)
        response = await self._transport.send(request, self._limits)
        server = url.origin()
        try:
            if response.status in {401, 403}:
                error = UnauthorizedError if response.status == 401 else DeniedError
                refusal = error(self._upstream, f"{server} gives no token {scope}".rstrip())
                refusal.by_status = False  # it is the same for each method
                raise refusal
            if not 200 <= response.status < 300:
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
        may name any https service (see ``auth.challenge_fields``), without TLS only its own host.

        Raises:
            UnavailableError: the realm is not trusted.
        """
        try:
            realm = self._url.join(URL(challenge.parameters["realm"]))  # it may be relative
        except ValueError:
            realm = URL()
        over_tls = self._url.scheme == "https" and realm.scheme == "https"
        own_http = self._url.scheme == "http" and realm.scheme in {"http", "https"}
        same_host = own_http and realm.host == self._url.host
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
    token = token.strip() if isinstance(token, str) else ""
    if not token or not token.isprintable():
        raise ValueError("no token in the answer")
    return token, _expiry(answer.get("expires_in"))


def _expiry(value: object) -> float:
    """Return ``expires_in`` in seconds; some services send null, 0, a text or a fraction."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or math.isnan(seconds) or seconds <= 0:
        return _DEFAULT_EXPIRY_SECONDS
    return min(max(seconds, 1.0), _MAX_EXPIRY_SECONDS)
