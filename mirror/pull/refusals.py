"""Refusals by an upstream, remembered for a short while: each is raised again without a question.

Knows errors.  Must not know what was asked for: callers choose names that tell all of it apart.
"""

from typing import Final, Protocol

from mirror.upstream.errors import (
    DeniedError,
    NotFoundError,
    RefusedError,
    UnauthorizedError,
    UpstreamError,
)
from mirror.upstream.routing import Target


class Negatives(Protocol):
    """Texts by name, each for a short while."""

    async def lookup(self, name: str) -> str | None:
        """The text, or None."""

    async def put(self, name: str, said: str) -> None:
        """Remember a text."""

    async def forget(self, name: str) -> None:
        """Ask upstream next time."""


_KINDS: Final = {"401": UnauthorizedError, "403": DeniedError, "404": NotFoundError}


class Refusals:
    """What an upstream refused of late: 404 for every client, 401 and 403 for the mirror itself.

    Docker Hub answers 401 for what is missing, too.  What it refuses to a client with credentials
    of its own is not remembered: the client may come with others, or be let in a moment later.
    """

    def __init__(self, negatives: Negatives) -> None:
        self._negatives = negatives

    async def check(self, target: Target, name: str) -> None:
        """Pass, or raise what upstream answered to ``name`` of late.

        Raises:
            NotFoundError, UnauthorizedError, DeniedError: it refused.
        """
        said = await self._negatives.lookup(name)
        if said is not None:
            kind, _, message = said.partition(" ")
            raise _KINDS[kind](target.upstream, message)

    async def note(self, target: Target, name: str, error: UpstreamError) -> None:
        """Remember what upstream answered to ``name``, if that is a refusal."""
        if isinstance(error, RefusedError) and target.principal is not None:
            return
        for kind, refusal in _KINDS.items():
            if isinstance(error, refusal):
                await self._negatives.put(name, f"{kind} {error.message}")

    async def forget(self, name: str) -> None:
        """Ask upstream next time."""
        await self._negatives.forget(name)
