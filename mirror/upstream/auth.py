"""Authentication at an upstream: anonymous, Basic, or a Bearer token for a scope.

Follows the token authentication of the distribution project.  The scope is always built here,
``repository:<name>:pull``: ghcr.io's challenge has a placeholder, Docker Hub's has no scope.
"""

from dataclasses import replace
from typing import Final, Protocol

import aiohttp
from yarl import URL

from mirror.oci.challenge import Challenge, parse_challenges
from mirror.upstream.errors import RefusedError, UpstreamError
from mirror.upstream.login import Login
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.token_service import TokenCache, TokenService
from mirror.upstream.transport import Request, Transport

_MAX_CHALLENGES: Final = 8  # fields, each of which may hold several


class Authenticator(Protocol):
    """Sends requests to one upstream as one client, within the rate limit of that client."""

    async def send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        """Send a request for a repository (empty: for none); return the last answer.

        Raises:
            UpstreamError: upstream did not answer, or a token cannot be fetched.
        """

    async def renew(self, repository: str) -> None:
        """Drop the token for a repository; the next request makes upstream check the credentials.

        Raises:
            UpstreamError: upstream cannot be asked.
        """


class Authorization:
    """Authenticates with credentials, or as an anonymous client."""

    def __init__(
        self,
        upstream: str,
        url: URL,
        transport: Transport,
        tokens: TokenCache,
        login: Login,
        owner: str = "",
    ) -> None:
        """``owner`` identifies the client with this login; empty for the mirror's own."""
        self._limits = RateLimits(upstream)
        self._url = url
        self._transport = transport
        self._login = login
        self._service = TokenService(
            *(upstream, url, transport, self._limits, tokens, login, owner)
        )
        self._challenge: Challenge | None = None

    async def send(self, request: Request, repository: str) -> aiohttp.ClientResponse:
        """See :meth:`Authenticator.send`."""
        header = await self._header(repository)
        response = await self._transport.send(replace(request, authorization=header), self._limits)
        if response.status != 401 or response.url.origin() != self._url.origin():
            return response
        try:
            renewed = await self._renewed(repository, response, header)
        except RefusedError as error:
            error.challenges = challenge_fields(response)
            raise
        if renewed is None:
            return response
        response.release()
        return await self._transport.send(replace(request, authorization=renewed), self._limits)

    async def renew(self, repository: str) -> None:
        """See :meth:`Authenticator.renew`.

        Without a challenge so far, ask for one: upstream may answer 404 without one for a private
        repository.
        """
        await self._service.forget(repository)
        if self._challenge is None and self._login.given:
            url = URL(f"{self._url}/v2/", encoded=True)
            response = await self._transport.send(Request("GET", url, "ping"), self._limits)
            response.close()
            if response.status == 401 and response.url.origin() == url.origin():
                self._challenge = self._choose(_challenges(response))

    async def _header(self, repository: str) -> str | None:
        """Return the header for the first attempt, by the last challenge; None without one."""
        if self._challenge is None:
            return None
        try:
            return await self._answer(self._challenge, repository)
        except UpstreamError:
            self._challenge = None  # upstream may use another challenge by now, or none
            raise

    async def _renewed(
        self, repository: str, refusal: aiohttp.ClientResponse, refused: str | None
    ) -> str | None:
        """Return the header after a 401 for ``refused``; None if there is nothing new to send."""
        challenge = self._choose(_challenges(refusal))
        if challenge is None:
            return None
        if challenge.scheme == "bearer" and refused is not None:
            await self._service.forget(repository, refused.removeprefix("Bearer "))
        header = await self._answer(challenge, repository)
        self._challenge = challenge
        return None if header == refused else header

    def _choose(self, challenges: list[Challenge]) -> Challenge | None:
        usable = {challenge.scheme: challenge for challenge in challenges}
        if "bearer" in usable:
            return usable["bearer"]
        return usable.get("basic") if self._login.given else None

    async def _answer(self, challenge: Challenge, repository: str) -> str | None:
        if challenge.scheme == "basic":
            async with self._login.use() as credentials:
                return None if credentials is None else credentials.basic()
        return "Bearer " + await self._service.token(challenge, repository)


def challenge_fields(response: aiohttp.ClientResponse) -> tuple[str, ...]:
    """Return the WWW-Authenticate fields of an answer that are safe to send to clients."""
    fields = response.headers.getall("WWW-Authenticate", [])[:_MAX_CHALLENGES]
    return tuple(each for each in fields if each.isascii() and each.isprintable())


def _challenges(response: aiohttp.ClientResponse) -> list[Challenge]:
    return [each for field in challenge_fields(response) for each in parse_challenges(field)]
