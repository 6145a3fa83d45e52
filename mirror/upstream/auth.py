"""Authentication at an upstream: anonymous, Basic, or a Bearer token for a scope.

Follows the token authentication of the distribution project.  The scope is always built here,
``repository:<name>:pull``: ghcr.io's challenge has a placeholder, Docker Hub's has no scope.
"""

import asyncio
import base64
import json
import math
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakValueDictionary

from yarl import URL

from mirror.oci.challenge import Challenge
from mirror.ttl_cache import TtlCache
from mirror.upstream.errors import DeniedError, UnauthorizedError, UnavailableError, UpstreamError
from mirror.upstream.transport import Request, Transport

_DEFAULT_EXPIRY_SECONDS: Final = 60.0  # of the token specification, if expires_in is missing
_MAX_EXPIRY_SECONDS: Final = 86400.0
_EXPIRY_MARGIN: Final = 0.1
_MAX_TOKEN_ANSWER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password or access token; the repr hides both."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(********)"

    def basic(self) -> str:
        """The Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


class Authenticator(Protocol):
    """Makes the Authorization header for one upstream."""

    async def header(self, repository: str) -> str | None:
        """Return the header for the first attempt, None for no header."""

    async def renewed(
        self, repository: str, challenges: list[Challenge], refused: str | None
    ) -> str | None:
        """Return the header after a 401 for ``refused``; None if there is nothing new to send."""

    @property
    def needs_challenge(self) -> bool:
        """Whether there are credentials but no challenge yet that says how to send them."""

    def learn(self, challenges: list[Challenge]) -> None:
        """Take the challenges of upstream before the first request with credentials."""

    async def renew(self, repository: str) -> None:
        """Drop the token for a repository; the next request fetches a new one."""


class Authorization:
    """Makes the Authorization header for one upstream."""

    def __init__(
        self,
        upstream: str,
        url: URL,
        transport: Transport,
        tokens: TtlCache[str],
        credentials: Credentials | None,
        owner: str = "",
    ) -> None:
        """``owner`` identifies the client with these credentials; empty for the mirror's own."""
        self._upstream = upstream
        self._url = url
        self._transport = transport
        self._tokens = tokens
        self._credentials = credentials
        self._owner = owner
        self._challenge: Challenge | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def header(self, repository: str) -> str | None:
        """Return the header for the first attempt, by the last challenge; None without one.

        ``repository`` is empty for requests without a repository.

        Raises:
            UpstreamError: a token is needed and cannot be fetched.
        """
        if self._challenge is None:
            return None
        try:
            return await self._answer(self._challenge, repository)
        except UpstreamError:
            self._challenge = None  # upstream may use another challenge by now, or none
            raise

    async def renewed(
        self, repository: str, challenges: list[Challenge], refused: str | None
    ) -> str | None:
        """Return the header after a 401 for ``refused``; None if there is nothing new to send.

        Raises:
            UpstreamError: a token is needed and cannot be fetched.
        """
        challenge = self._choose(challenges)
        if challenge is None:
            return None
        if challenge.scheme == "bearer" and refused is not None:
            await self._forget(repository, refused)
        header = await self._answer(challenge, repository)
        self._challenge = challenge
        return None if header == refused else header

    def _choose(self, challenges: list[Challenge]) -> Challenge | None:
        usable = {challenge.scheme: challenge for challenge in challenges}
        if "bearer" in usable:
            return usable["bearer"]
        return usable.get("basic") if self._credentials is not None else None

    async def _answer(self, challenge: Challenge, repository: str) -> str | None:
        if challenge.scheme == "basic":
            return None if self._credentials is None else self._credentials.basic()
        return "Bearer " + await self._token(challenge, _scope(repository))

    @property
    def needs_challenge(self) -> bool:
        """Whether there are credentials and upstream has not sent a challenge yet."""
        return self._challenge is None and self._credentials is not None

    def learn(self, challenges: list[Challenge]) -> None:
        """Take the challenges of upstream before the first request with credentials."""
        self._challenge = self._choose(challenges)

    async def renew(self, repository: str) -> None:
        """Drop the token for a repository."""
        await self._tokens.forget(self._name(_scope(repository)))

    async def _forget(self, repository: str, refused: str) -> None:
        name = self._name(_scope(repository))
        # Another request may have fetched a new token while this one was refused.
        if "Bearer " + (await self._tokens.lookup(name) or "") == refused:
            await self._tokens.forget(name)

    def _name(self, scope: str) -> str:
        return f"{self._url} {scope} {self._owner}"

    async def _token(self, challenge: Challenge, scope: str) -> str:
        name = self._name(scope)
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            token = await self._tokens.lookup(name)
            if token is None:
                token, expires_in = await self._fetch(challenge, scope)
                await self._tokens.put(name, token, expires_in * (1 - _EXPIRY_MARGIN))
            return token

    async def _fetch(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        realm = self._realm(challenge)
        query = {"scope": scope} if scope else {}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        authorization = None if self._credentials is None else self._credentials.basic()
        request = Request("GET", realm.update_query(query), "token", authorization=authorization)
        response = await self._transport.send(request)
        try:
            if response.status in {401, 403}:
                error = UnauthorizedError if response.status == 401 else DeniedError
                raise error(self._upstream, f"{realm.origin()} gives no token {scope}".rstrip())
            if response.status != 200:
                raise UnavailableError(
                    self._upstream, f"{realm.origin()} answered {response.status} to a token call"
                )
            return _parse(await self._transport.read(response, "token", _MAX_TOKEN_ANSWER_BYTES))
        except ValueError as error:
            raise UnavailableError(self._upstream, f"{realm.origin()} answered no token") from error
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


def _parse(body: bytes) -> tuple[str, float]:
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
