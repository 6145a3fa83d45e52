"""Remembers refusals of an upstream, and raises them again without a request.

A refusal counts for a short while.  A 404 also counts while upstream cannot answer, as a stale tag
does: the clients that look for signatures fail if they get another error.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mirror.pull.policy import usable_stale
from mirror.shares import FullError
from mirror.store.interface import ListingStore, Page
from mirror.ttl_cache import TtlCache
from mirror.upstream.errors import (
    DeniedError,
    LoginRefusedError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    RejectedError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.routing import Target

_FIRST_TAGS: Final = re.compile("n=([0-9]{1,9})")
#: Errors after which the last known answer of upstream is served.
CANNOT_ANSWER: Final = (
    *(UnavailableError, TimedOutError, RateLimitedError, LoginRefusedError, FullError),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question to upstream.

    ``rest`` has the reference and the restrictions of the client (Accept, query).  ``general`` is
    ``rest`` without the restrictions: what does not exist at all does not exist for this client.
    """

    target: Target
    kind: str
    rest: str
    general: str

    @property
    def name(self) -> str:
        """The key in memory."""
        return f"{self.kind} {self.target} {self.rest}"

    @property
    def page(self) -> str:
        """The key of a listing on disk, which a push does not change."""
        return f"{self.kind} {replace(self.target, since='')} {self.rest}"

    @property
    def all_pages(self) -> tuple[str, ...]:
        """The keys of the listings on disk that answer this question.

        A registry need not filter referrers: a list of all of them does for each kind.  A list of
        all tags does for a first page that holds them all.
        """
        by_all = self.kind == "referrers" or self.most is not None
        return tuple({self.page: None, (self.whole if by_all else self).page: None})

    @property
    def whole(self) -> "Question":
        """The question without the restrictions of the client."""
        return replace(self, rest=self.general)

    @property
    def most(self) -> int | None:
        """How many tags the client wants on the first page; None for all other questions."""
        counted = _FIRST_TAGS.fullmatch(self.rest) if self.kind == "tags" else None
        return None if counted is None else int(counted[1])

    @property
    def missing(self) -> str:
        """The key of a 404 on disk, the same for all clients."""
        return f"{self.kind} {self.target.record} {self.rest}"

    @property
    def all_missing(self) -> tuple[str, ...]:
        """The keys of the 404s on disk that answer this question."""
        return tuple({self.missing: None, self.whole.missing: None})


_KINDS: Final = {"401": UnauthorizedError, "403": DeniedError, "404": NotFoundError}
_REJECTED: Final = "rejected"
#: A field of 404s that the operator imported: as an imported tag, they do not become too old.
IMPORTED: Final = "imported"


class RecentRefusals:
    """Refusals, for a short while: 401 and 403 for the mirror's own credentials, others for all.

    Docker Hub also answers 401 for a missing repository.  A 401 or 403 for a client with its own
    credentials is not remembered: it may send others, or get access a moment later.
    """

    def __init__(self, negatives: TtlCache[str]) -> None:
        self._negatives = negatives

    async def check(self, question: Question) -> None:
        """Raise the remembered refusal of a question, if there is one.

        Raises:
            NotFoundError, RefusedError, RejectedError: upstream refused recently.
        """
        said = await self._negatives.lookup(question.name)
        if said is not None:
            kind, _, message = said.partition(" ")
            if kind == _REJECTED:
                status, code, message = message.split(" ", 2)
                raise RejectedError(question.target.upstream, message, int(status), code)
            raise _KINDS[kind](question.target.upstream, message)

    async def note(self, question: Question, error: UpstreamError | FullError) -> None:
        """Remember the answer of upstream, if it is a refusal."""
        own = isinstance(error, LoginRefusedError)  # the login remembers it, until it is corrected
        if own or (isinstance(error, RefusedError) and question.target.principal is not None):
            return
        if isinstance(error, RejectedError):
            said = f"{_REJECTED} {error.status} {error.code} {error.message}"
            await self._negatives.put(question.name, said)
        for kind, refusal in _KINDS.items():
            if isinstance(error, refusal):
                await self._negatives.put(question.name, f"{kind} {error.message}")


class Refusals(RecentRefusals):
    """Refusals, and the 404s to repeat while upstream cannot answer."""

    def __init__(
        self,
        negatives: TtlCache[str],
        missing: ListingStore,
        stale_if_error: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Repeat the 404s in ``missing`` for ``stale_if_error`` seconds."""
        super().__init__(negatives)
        self._missing = missing
        self._stale_if_error = stale_if_error
        self._clock = clock

    async def note(self, question: Question, error: UpstreamError | FullError) -> None:
        """Remember the answer of upstream, if it is a refusal.

        Raises:
            NotFoundError: upstream cannot answer, and its last answer was a 404.
        """
        if isinstance(error, CANNOT_ANSWER):
            await self._repeat(question, error)
        # One of many clients that got the same 404 writes to the disk.
        known = await self._negatives.lookup(question.name) is not None
        await super().note(question, error)
        if isinstance(error, NotFoundError) and not known:
            missing = Page(None, {}, self._clock())
            await self._missing.put(question.missing, missing)
            # A registry that has no referrers of one kind says so in a list: this one has no API.
            general = question.whole.missing
            if question.kind == "referrers" and await self._missing.lookup(general) is None:
                await self._missing.put(general, missing)

    async def _repeat(self, question: Question, error: UpstreamError | FullError) -> None:
        for name in question.all_missing:
            page = await self._missing.lookup(name)
            if page is None or page.body is not None:
                continue
            recent = usable_stale(page.seen, self._clock(), self._stale_if_error)
            if recent or IMPORTED in page.fields:
                text = f"had no such thing when last asked ({error})"
                raise NotFoundError(question.target.upstream, text) from error

    async def found(self, question: Question) -> None:
        """Forget a 404 on disk: upstream has just sent the content."""
        for name in question.all_missing:
            page = await self._missing.lookup(name)
            if page is not None and page.body is None:
                await self._missing.forget(name)

    async def forget(self, name: str) -> None:
        """Forget the refusal of a name, so that the next request goes upstream."""
        await self._negatives.forget(name)
        await self._missing.forget(name)
