"""Authentication at an upstream: anonymous, Basic, or a Bearer token for a scope.

Follows the token authentication of the distribution project.  The scope is always built here,
``repository:<name>:pull``: ghcr.io's challenge has a placeholder, Docker Hub's has no scope.
"""

import contextlib
import re
from dataclasses import replace
from typing import Final, Protocol

import aiohttp
from yarl import URL

from mirror.lru import Lru
from mirror.oci.challenge import Challenge, over_tls, parse_challenges, with_realms
from mirror.trouble import Problem
from mirror.ttl_cache import TtlCache
from mirror.upstream.errors import LoginRefusedError, RefusedError, UpstreamError
from mirror.upstream.login import Credentials, Login, Principal, SharedLogin
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.token_service import TokenService, Tried
from mirror.upstream.transport import Request, Transport

_MAX_CHALLENGES: Final = 8  # fields, each of which may hold several
_MAX_ANSWERS: Final = 5  # to the challenges in one exchange
_MAX_OTHERS: Final = 16  # other registries that upstream redirects to
#: A registry may also answer so to an outdated token (400) or password (403, ECR).
_REFUSALS: Final = {400, 401, 403}
_ERRORS: Final = 400
_OPEN: Final = "open"
_CLOSED: Final = "closed"
#: How long it is remembered whether anonymous clients may read a repository, in seconds.
_ANONYMOUS_SECONDS: Final = 60.0
_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/[^/]+", re.ASCII)


class Authenticator(Protocol):
    """Sends requests to one upstream as one client, within the rate limit of that client.

    Raises UpstreamError if upstream does not answer, or gives no token.
    """

    async def send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        """Send a request for a repository (empty: for none); return the last answer."""

    async def renew(self, repository: str) -> None:
        """Drop the token for a repository; the next request makes upstream check the login."""

    def problems(self) -> list[Problem]:
        """Return the troubles of this client's login and limits."""


class Authorization:
    """Authenticates with credentials, or as an anonymous client."""

    def __init__(
        self,
        upstream: str,
        url: URL,
        transport: Transport,
        tokens: TtlCache[str],
        login: Login,
        owner: str = "",
        shared: SharedLogin | None = None,
        *,
        elsewhere: bool = False,
    ) -> None:
        """Authenticate at ``url``.

        Args:
            owner: identifies the client with this login; empty for the mirror's own.
            shared: what other mirrors with the mirror's own login know; None for clients.
            elsewhere: upstream has redirected to this registry; no further ones are logged in to.
        """
        # The limit of a client with its own credentials is for that client to know.
        limits = None if owner or shared is None else shared.limits
        self._limits = RateLimits(upstream, None if owner else login.advice, limits)
        self._url = url
        self._transport = transport
        self._login = login
        self._upstream = upstream
        self._tokens = tokens
        self._shared = shared
        self._others: Lru[URL, Authorization] = Lru(_MAX_OTHERS)
        self._elsewhere = elsewhere
        self._anonymous: Authorization | None = None
        self._service = TokenService(
            *(upstream, url, transport, self._limits, tokens, login, owner),
            None if shared is None else shared.tokens,
        )
        self._challenge: Challenge | None = None

    async def send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        """See :meth:`Authenticator.send`.

        While the mirror's own login is refused, send as an anonymous client, for public content.
        """
        try:
            return await self._send(request, repository)
        except LoginRefusedError:
            answer = await self._send_anonymously(request, repository)
            if answer is None:
                raise
            return answer

    async def _send_anonymously(
        self, request: Request, repository: str
    ) -> aiohttp.ClientResponse | None:
        """Return the answer; None if it may be due to the missing login.

        A 404 may hide private content, but not in a repository that anonymous clients may read.
        """
        if await self._tokens.lookup(self._public_name(repository)) == _CLOSED:
            return None
        if self._anonymous is None:
            self._anonymous = Authorization(
                *(self._upstream, self._url, self._transport, self._tokens, Login(), "anonymous"),
                self._shared,
            )
        with contextlib.suppress(UpstreamError):
            answer = await self._anonymous.send(request, repository)
            await self._note_anonymous(repository, answer)
            known = await self._tokens.lookup(self._public_name(repository))
            if answer.status < _ERRORS or known == _OPEN:
                return answer
            answer.release()
        return None

    async def _note_anonymous(self, repository: str, answer: aiohttp.ClientResponse) -> None:
        if answer.status < _ERRORS or answer.status in _REFUSALS:
            known = _OPEN if answer.status < _ERRORS else _CLOSED
            await self._tokens.put(self._public_name(repository), known, _ANONYMOUS_SECONDS)

    def _public_name(self, repository: str) -> str:
        return f"{self._url} {repository} for anonymous clients"

    async def _send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        tried = Tried(request.method)
        response = None
        if self._challenge is not None:
            try:
                response = await self._answer(self._challenge, request, repository, tried)
            except LoginRefusedError:
                raise
            except RefusedError:  # perhaps the challenge is outdated: ask for another one
                response = None
        if response is None:
            response = await self._transport.send(request, self._limits)
            if self._login.own and not self._wants_token(response):
                await self._note_anonymous(repository, response)
        return await self.settle(request, repository, response, tried)

    async def settle(
        self, request: Request, repository: str, response: aiohttp.ClientResponse, tried: Tried
    ) -> aiohttp.ClientResponse:
        """Authenticate until the answer is no refusal, or there is nothing new to send."""
        for _ in range(_MAX_ANSWERS):
            try:
                if response.url.origin() != self._url.origin():
                    return await self._settle_elsewhere(request, response)
                challenge = await self._challenge_of(response, tried)
                if challenge is None:
                    break
                if response.url.path != request.url.path:  # the repository has another name
                    request = replace(request, url=response.url)
                    repository = _repository(response.url) or repository
                self._remember(challenge)
                answer = await self._answer(challenge, request, repository, tried)
            except RefusedError as error:
                error.challenges = challenge_fields(response)
                response.release()
                raise
            except BaseException:
                response.release()
                raise
            if answer is None:
                break
            response.release()
            response = answer
        return response

    async def renew(self, repository: str) -> None:
        """See :meth:`Authenticator.renew`.

        Without a challenge so far, ask for one: upstream may answer 404 without one for a private
        repository.
        """
        await self._service.forget(repository)
        if self._challenge is None and self._login.given:
            self._remember(await self._learn())

    def problems(self) -> list[Problem]:
        refused = [] if self._login.problem is None else [self._login.problem]
        return [*refused, *self._limits.problems()]

    def _remember(self, challenge: Challenge | None) -> None:
        """Use a challenge from the first request on; its scope is for one repository."""
        if challenge is not None:
            parameters = {**challenge.parameters, "scope": ""}
            self._challenge = replace(challenge, parameters=parameters)

    async def _challenge_of(
        self, response: aiohttp.ClientResponse, tried: Tried
    ) -> Challenge | None:
        """Return the challenge to answer after a refusal, None if there is none."""
        status = response.status
        if status not in _REFUSALS and status != 404:
            return None
        untried = not tried.basic and not tried.tokens
        if untried or status != 404:
            challenge = self._choose(_challenges(response))
            if challenge is not None:
                return challenge
        if untried:  # upstream may say that what is private does not exist
            return await self._learn() if self._login.given and status != 400 else None
        return self._challenge if tried.tokens and status != 404 else None

    async def _learn(self) -> Challenge | None:
        """Ask for a challenge; a registry without one has the credentials sent to it."""
        url = URL(f"{self._url}/v2/", encoded=True)
        response = await self._transport.send(Request("GET", url, "ping"), self._limits)
        response.close()
        if response.url.origin() != url.origin():
            return None
        usual = Challenge("basic", {}) if response.status == 200 else None
        return self._choose(_challenges(response)) or usual

    async def _settle_elsewhere(
        self, request: Request, response: aiohttp.ClientResponse
    ) -> aiohttp.ClientResponse:
        """Authenticate anonymously to another registry that upstream redirects to (lscr.io)."""
        if response.status != 401 or self._elsewhere:
            return response
        origin = response.url.origin()
        other = self._others.get(origin)
        if other is None:
            other = Authorization(
                *(self._upstream, origin, self._transport, self._tokens, Login()),
                shared=self._shared,
                elsewhere=True,
            )
            self._others.put(origin, other)
        there = replace(request, url=response.url)
        return await other.settle(there, _repository(response.url), response, Tried(request.method))

    def _choose(self, challenges: list[Challenge]) -> Challenge | None:
        usable: dict[str, Challenge] = {}
        for challenge in challenges:
            if challenge.scheme != "bearer" or challenge.parameters.get("realm"):
                usable.setdefault(challenge.scheme, challenge)
        if "bearer" in usable:
            return usable["bearer"]
        return usable.get("basic") if self._login.given else None

    async def _answer(
        self, challenge: Challenge, request: Request, repository: str, tried: Tried
    ) -> aiohttp.ClientResponse | None:
        """Send a request with the answer to a challenge; None if it was tried already."""
        if challenge.scheme == "basic":
            if tried.basic:
                return None
            tried.basic = True
            return await self._send_basic(request)
        try:
            token = await self._service.untried(challenge, repository, tried)
        except LoginRefusedError:
            raise
        except UpstreamError:
            self._challenge = None  # upstream may use another challenge by now, or none
            raise
        if token is None:
            return None
        return await self._transport.send(
            replace(request, authorization=f"Bearer {token}"), self._limits
        )

    async def _send_basic(self, request: Request) -> aiohttp.ClientResponse:
        for last in (False, True):
            async with self._login.use() as credentials:
                assert credentials is not None, "Basic is chosen only with credentials"
                basic = replace(request, authorization=credentials.basic())
                response = await self._transport.send(basic, self._limits)
                if response.status not in _REFUSALS or self._wants_token(response):
                    self._login.accept()
                    return response
                if last or not await self._login.refresh(credentials):
                    await self._judge(basic, credentials, response)
                    return response
                response.release()
        raise AssertionError("the loop returns")

    def _wants_token(self, response: aiohttp.ClientResponse) -> bool:
        """Whether a refusal is not about user and password."""
        challenge = self._choose(_challenges(response))
        other = response.url.origin() != self._url.origin()
        return other or (challenge is not None and challenge.scheme == "bearer")

    async def _judge(
        self, request: Request, credentials: Credentials, response: aiohttp.ClientResponse
    ) -> None:
        """Raise LoginRefusedError if a refusal is not about the repository alone."""
        if not self._login.own:
            return
        if self._login.proven or response.status != 401:
            url = URL(f"{self._url}/v2/", encoded=True)
            ping = Request("GET", url, "ping", authorization=request.authorization)
            answer = await self._transport.send(ping, self._limits)
            answer.close()
            if answer.status not in _REFUSALS:
                self._login.accept()
                return
        response.release()
        self._login.refuse(credentials)


class Verbatim:
    """Sends the Authorization field of a client to upstream unchanged, and nothing else."""

    def __init__(self, upstream: str, transport: Transport, principal: Principal) -> None:
        self._limits = RateLimits(upstream)
        self._transport = transport
        self._header = principal.authorization or None

    async def send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        """Send a request; a refusal is for the client: only the client can get another token."""
        own = replace(request, authorization=self._header)
        return await self._transport.send(own, self._limits)

    async def renew(self, repository: str) -> None:
        """Do nothing: no token is stored here."""

    def problems(self) -> list[Problem]:
        """Return nothing: the troubles of a client are for that client to know."""
        return []


def challenge_fields(response: aiohttp.ClientResponse) -> tuple[str, ...]:
    """Return the WWW-Authenticate fields of an answer that are safe to send to clients.

    The token services of a registry with TLS are reached by TLS too.
    """
    fields = response.headers.getall("WWW-Authenticate", [])[:_MAX_CHALLENGES]
    safe = (each for each in fields if each.isascii() and each.isprintable())
    secure = response.url.scheme == "https"
    return tuple(with_realms(each, over_tls) if secure else each for each in safe)


def _challenges(response: aiohttp.ClientResponse) -> list[Challenge]:
    return [each for field in challenge_fields(response) for each in parse_challenges(field)]


def _repository(url: URL) -> str:
    """Return the repository in a URL of the registry API; empty if there is none."""
    found = _REPOSITORY.search(url.raw_path)
    return "" if found is None else found[1]
