"""What the tiers of a cluster have in common: the object store, Redis, the other mirrors.

After a failure a server is not asked again until a probe in the background has had an answer.  So a
server that is down costs one request one short wait, and the others nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS: Final = 0.5
_MOST_PAUSE_SECONDS: Final = 5.0


class TierError(Exception):
    """A tier of the cluster is slow, broken or down."""


class TierMissError(TierError):
    """The tier answers, but does not have the object."""


class Observer(Protocol):
    """Receives the events of the tiers."""

    def tier_answered(self, tier: str, operation: str, result: str, seconds: float) -> None:
        """Report a request; ``result`` is hit, miss (also a refusal), stored or error."""

    def tier_bytes(self, tier: str, direction: str, count: int) -> None:
        """Report bytes of objects or blobs; ``direction`` is in or out."""

    def tier_up(self, tier: str, up: bool) -> None:
        """Report whether a tier may be asked."""

    def tier_holds(self, tier: str, size: int) -> None:
        """Report the bytes in the object store."""

    def tier_evicted(self, tier: str, objects: int, size: int) -> None:
        """Report evicted objects and their bytes."""

    def uploads_waiting(self, change: int) -> None:
        """Report that the number of objects to upload changed by ``change``."""

    def upload_ended(self, result: str) -> None:
        """Report an upload; ``result`` is stored, present, lost, failed or dropped."""


class Availability:
    """The availability of one server, as this process sees it."""

    def __init__(
        self,
        name: str,
        remedy: str,
        probe: Callable[[], Awaitable[str | None]],
        tell: Callable[[bool], None],
    ) -> None:
        """``probe`` returns why the server does not answer, None if it does.

        ``tell`` is called with whether the server answers, at first and after changes.
        """
        self._name = name
        self._remedy = remedy
        self._probe = probe
        self._tell = tell
        self._trouble = Trouble()
        self._probing: asyncio.Task[None] | None = None
        tell(True)

    @property
    def up(self) -> bool:
        """Whether the server may be asked."""
        return self._probing is None

    @property
    def problem(self) -> Problem | None:
        """The trouble that lasts, None if the server answers."""
        return self._trouble.problem

    async def wait(self) -> None:
        """Wait until the server may be asked."""
        while self._probing is not None:
            await asyncio.wait([self._probing])

    def failed(self) -> None:
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe_until_back(), name=f"{self._name} back")
            self._probing.add_done_callback(self._back)

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    def _back(self, _: asyncio.Task[None]) -> None:
        self._probing = None
        self._tell(True)

    async def _probe_until_back(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while (cause := await self._probe()) is not None:
            self._tell(False)
            if self._trouble.met(Problem(f"{self._name} does not answer", cause, self._remedy)):
                _log.warning("%s does not answer: %s; %s", self._name, cause, self._remedy)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)
        seconds = self._trouble.over()
        if seconds is not None:
            _log.warning("%s answers again, after %.0f s", self._name, seconds)
