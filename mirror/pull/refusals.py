"""Remembers refusals of an upstream for a short while, and raises them again without a request.

Callers choose a unique name for each request; this module does not interpret the names.
"""

from typing import Final, Protocol

from mirror.upstream.errors import (
    DeniedError,
    LoginRefusedError,
    NotFoundError,
    RefusedError,
    RejectedError,
    UnauthorizedError,
    UpstreamError,
)
from mirror.upstream.routing import Target


class Negatives(Protocol):
    """Texts by name, which expire after a short while."""

    async def lookup(self, name: str) -> str | None:
        """The text, or None."""

    async def put(self, name: str, said: str) -> None:
        """Store a text."""

    async def forget(self, name: str) -> None:
        """Remove a text, if there is one."""


_KINDS: Final = {"401": UnauthorizedError, "403": DeniedError, "404": NotFoundError}
_REJECTED: Final = "rejected"


class Refusals:
    """Recent refusals: 401 and 403 for the mirror's own credentials, others for all clients.

    Docker Hub also answers 401 for a missing repository.  A 401 or 403 for a client with its own
    credentials is not remembered: it may send others, or get access a moment later.
    """

    def __init__(self, negatives: Negatives) -> None:
        self._negatives = negatives

    async def check(self, target: Target, name: str) -> None:
        """Raise the remembered refusal of ``name``, if there is one.

        Raises:
            NotFoundError, RefusedError, RejectedError: upstream refused recently.
        """
        said = await self._negatives.lookup(name)
        if said is not None:
            kind, _, message = said.partition(" ")
            if kind == _REJECTED:
                status, code, message = message.split(" ", 2)
                raise RejectedError(target.upstream, message, int(status), code)
            raise _KINDS[kind](target.upstream, message)

    async def note(self, target: Target, name: str, error: UpstreamError) -> None:
        """Remember the answer of upstream to ``name``, if it is a refusal."""
        own = isinstance(error, LoginRefusedError)  # the login remembers it, until it is corrected
        if own or (isinstance(error, RefusedError) and target.principal is not None):
            return
        if isinstance(error, RejectedError):
            said = f"{_REJECTED} {error.status} {error.code} {error.message}"
            await self._negatives.put(name, said)
        for kind, refusal in _KINDS.items():
            if isinstance(error, refusal):
                await self._negatives.put(name, f"{kind} {error.message}")

    async def forget(self, name: str) -> None:
        """Forget the refusal of ``name``, so that the next request goes upstream."""
        await self._negatives.forget(name)
