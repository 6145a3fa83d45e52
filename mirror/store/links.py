"""Which private objects a repository has, in the word of its upstream.

A private object may be in the cache for one repository and be asked for through another, by
somebody who may read that one alone: it is given out only where there is a link.
"""

import logging

from mirror.store.database import IndexUnavailableError
from mirror.store.notes import Notes

_log = logging.getLogger(__name__)


class Links:
    """Names of what repositories have; the caller chooses names that tell all of them apart."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def has(self, name: str) -> bool:
        """Whether upstream has said so; where nobody knows, it has not."""
        return await self._notes.lookup(f"link {name}") is not None

    async def put(self, name: str) -> None:
        """Upstream has just said so; where that cannot be written it is asked again next time."""
        try:
            await self._notes.put(f"link {name}", b"")
        except IndexUnavailableError as error:
            _log.info("a link could not be written down: %s", error)
