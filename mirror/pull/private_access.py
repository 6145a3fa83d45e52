"""Who may have what is private: upstream has the word, asked with the client's own credentials.

Two things must hold before a visitor is given anything that is not everybody's:

*grant*: upstream has let this visitor into this repository, at most ``grant_max_age`` ago and
after a look at the credentials themselves; *link*: upstream has said that this repository has
this very object.  Nobody gets an object by knowing its digest.

What everybody may have goes the ordinary way, whatever a client sends: the mirror asks as itself
first, and as the visitor only where that is refused.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.media_types import ACCEPT_MANIFESTS
from mirror.pull.refusals import Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.upstream.credentials import NOBODY, Principal
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import (
    NotFoundError,
    RateLimitedError,
    RefusedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.routing import Target

R = TypeVar("R")
_log = logging.getLogger(__name__)
#: What another may be given although the mirror itself is not.
_NOT_FOR_ALL: Final = (RefusedError, NotFoundError, RateLimitedError)


class Grants(Protocol):
    """Whom upstream has let into a repository of late."""

    async def holds(self, name: str) -> bool:
        """Whether it has."""

    async def put(self, name: str) -> None:
        """It just has."""

    async def forget(self, name: str) -> None:
        """It has not."""


class Links(Protocol):
    """Which objects upstream says a repository has."""

    async def has(self, name: str) -> bool:
        """Whether it has said so."""

    async def put(self, name: str) -> None:
        """It has just said so."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What is asked for: a ``blob``, a ``manifest``, or a page of ``tags`` or ``referrers``."""

    kind: str
    reference: str | Digest = ""
    query: str = ""

    @property
    def linked(self) -> bool:
        """Whether it is the same whoever asks, so that upstream need not be asked each time."""
        return self.kind in {"blob", "manifest"} and isinstance(self.reference, Digest)

    async def confirm(self, registry: Endpoints, repository: str) -> None:
        """Ask upstream for it, as whoever the registry was opened for.

        Raises:
            UpstreamError: upstream does not give it.
        """
        if self.kind == "manifest":
            await registry.confirm_manifest(repository, str(self.reference), ACCEPT_MANIFESTS)
        elif not isinstance(self.reference, Digest):
            await registry.tags(repository, self.query)
        elif self.kind == "blob":
            await registry.confirm_blob(repository, self.reference)
        else:
            await registry.referrers(repository, self.reference, self.query)


class PrivateAccess:
    """What upstream has said about visitors, and the questions to it."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        grants: Grants,
        links: Links,
        refusals: Refusals,
    ) -> None:
        self._registries = registries
        self._grants = grants
        self._links = links
        self._refusals = refusals
        self._questions: SingleFlight[Target, tuple[Resource, UpstreamError | None]] = SingleFlight(
            "grant"
        )

    async def greet(self, upstream: str, principal: Principal) -> None:
        """Ask an upstream whether it knows a visitor at all.

        Raises:
            UpstreamError: it does not, or cannot be asked.
        """
        await self._registries[upstream].with_credentials(principal).greet()

    async def visited(
        self,
        target: Target,
        thing: Resource,
        public: Callable[[Target], Awaitable[R]],
        private: Callable[[Target], Awaitable[R]],
    ) -> R:
        """Get a thing as everybody gets it, or else as the visitor that ``target`` names may.

        Raises:
            UpstreamError: neither is to be had.
        """
        if not await self._grants.holds(str(target)):
            try:
                try:
                    return await public(replace(target, principal=None))
                except _NOT_FOR_ALL as error:
                    if isinstance(error, RateLimitedError) and target.principal == NOBODY:
                        raise  # the mirror was nobody, too
                await self._admit(target, thing)
            except (UnavailableError, TimedOutError) as error:
                text = "nor can it be asked who may have what is private"
                raise type(error)(error.upstream, f"{error.message}; {text}") from error
        elif not await self.has(target, thing):
            await self._confirm(target, thing)
        try:
            return await private(target)
        except RefusedError:
            await self._grants.forget(str(target))
            raise

    async def has(self, target: Target, thing: Resource) -> bool:
        """Whether upstream has said that the repository has a thing, if it need have said so."""
        return not thing.linked or await self._links.has(_name(target, thing))

    async def link(self, target: Target, thing: Resource) -> None:
        """Upstream has just told a visitor that the repository has a thing."""
        if not await self.has(target, thing):
            await self._links.put(_name(target, thing))

    async def close(self) -> None:
        """Break off what is under way."""
        await self._questions.close()

    async def _admit(self, target: Target, thing: Resource) -> None:
        """Have upstream let a visitor in: one question for all that it asks at once."""
        (asked, error), _ = await self._questions.join(
            target, lambda: self._asked_anew(target, thing)
        )
        if error is None:
            if asked != thing and not await self.has(target, thing):
                await self._confirm(target, thing)
        elif asked == thing or not isinstance(error, NotFoundError):
            raise error
        else:
            # That the other thing is not there says nothing: this one is asked for, link or not.
            await self._confirm(target, thing)
            await self._grants.put(str(target))

    async def _asked_anew(
        self, target: Target, thing: Resource
    ) -> tuple[Resource, UpstreamError | None]:
        # What is believed of a token was looked at when it was issued: that may be long ago.
        await self._registry(target).renew(target.repository)
        try:
            await self._confirm(target, thing)
        except UpstreamError as error:
            return thing, error
        await self._grants.put(str(target))
        return thing, None

    async def _confirm(self, target: Target, thing: Resource) -> None:
        """Ask upstream for a thing, as the visitor.

        Raises:
            UpstreamError: upstream does not give it to that visitor.
        """
        name = f"{thing.kind} {target} {thing.reference}"
        await self._refusals.check(target, name)
        try:
            await thing.confirm(self._registry(target), target.repository)
        except NotFoundError as error:
            await self._refusals.note(target, name, error)
            raise
        await self.link(target, thing)

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)


def _name(target: Target, thing: Resource) -> str:
    return f"{target.record} {thing.kind} {thing.reference}"
