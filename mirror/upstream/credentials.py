"""Clients with their own credentials.

Only the upstream receives the credentials of a client.  Cache keys, logs and errors contain the
client's identity instead: a keyed hash that reveals nothing about the secret.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

import aiohttp

from mirror.oci.challenge import parse_basic
from mirror.trouble import Problem
from mirror.upstream.login import Credentials
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.transport import Request, Transport

_IDENTITY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Principal:
    """One client; ``authorization`` is its Authorization field, empty if it sent none."""

    identity: str
    authorization: str = field(default="", repr=False, compare=False)

    def credentials(self) -> Credentials | None:
        """User and password; None if the client did not use the Basic scheme."""
        pair = parse_basic(self.authorization)
        return None if pair is None else Credentials(*pair)


#: A client without credentials; it gets the answer that upstream gives to anonymous clients.
NOBODY: Final = Principal("nobody")


class Principals:
    """Makes principals from Authorization fields."""

    def __init__(self, key: bytes) -> None:
        """``key`` is the secret key of the hash that identifies a client."""
        self._key = key

    def principal(self, authorization: str) -> Principal:
        """Return the principal that sent this Authorization field."""
        data = authorization.encode(errors="surrogateescape")
        hashed = hashlib.blake2b(data, digest_size=_IDENTITY_BYTES, key=self._key)
        return Principal(hashed.hexdigest(), authorization)


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
