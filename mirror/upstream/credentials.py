"""A client with credentials of its own, as an upstream is to see it.

What it sent is told to that upstream alone.  Everywhere else, in names of what is remembered, in
logs and errors, it goes by its identity, a keyed hash that says nothing of its secret.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.authorization import parse_basic
from mirror.upstream.auth import Credentials

_IDENTITY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Principal:
    """One client; ``authorization`` is the field as it was sent, empty for one that sent none."""

    identity: str
    authorization: str = field(default="", repr=False, compare=False)

    def credentials(self) -> Credentials | None:
        """User and password, None where it sent something else."""
        pair = parse_basic(self.authorization)
        return None if pair is None else Credentials(*pair)


#: A client that sent nothing and is told what upstream would tell it.
NOBODY: Final = Principal("nobody")


class Principals:
    """Makes visitors of what clients send."""

    def __init__(self, key: bytes) -> None:
        """Tell them apart by a hash under ``key``, which nobody else has."""
        self._key = key

    def principal(self, authorization: str) -> Principal:
        """Who sent this Authorization field."""
        data = authorization.encode(errors="surrogateescape")
        hashed = hashlib.blake2b(data, digest_size=_IDENTITY_BYTES, key=self._key)
        return Principal(hashed.hexdigest(), authorization)


class Verbatim:
    """Sends upstream what a client sent, as it is, and nothing else."""

    def __init__(self, principal: Principal) -> None:
        self._header = principal.authorization or None

    async def header(self, repository: str) -> str | None:
        """What the client sent."""
        return self._header

    async def renewed(self, repository: str, challenges: object, refused: str | None) -> str | None:
        """Nothing better: only the client can get another token."""
        return None

    @property
    def needs_challenge(self) -> bool:
        """Never."""
        return False

    def learn(self, challenges: object) -> None:
        """Nothing to learn."""

    async def renew(self, repository: str) -> None:
        """Nothing to forget."""
