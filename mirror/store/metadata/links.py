"""Which private objects a repository has, in the word of its upstream.

A private object may be in the cache for one repository and be asked for through another, by
somebody who may read that one alone: it is given out only where there is a link.
"""

import logging
from collections import OrderedDict
from typing import Final

from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore

_log = logging.getLogger(__name__)
_KNOWN: Final = 10_000  # kept in memory: each layer of a private image is asked about at each pull


class Links:
    """Names of what repositories have; the caller chooses names that tell all of them apart."""

    def __init__(self, notes: KeyValueStore) -> None:
        self._notes = notes
        self._known: OrderedDict[str, None] = OrderedDict()

    async def has(self, name: str) -> bool:
        """Whether upstream has said so; where nobody knows, it has not."""
        if name in self._known:
            return True
        if await self._notes.lookup(f"link {name}") is None:
            return False
        self._remember(name)
        return True

    async def put(self, name: str) -> None:
        """Upstream has just said so; where that cannot be written it is asked again next time."""
        try:
            await self._notes.put(f"link {name}", b"")
        except IndexUnavailableError as error:
            _log.info("a link could not be written down: %s", error)
        else:
            self._remember(name)

    def _remember(self, name: str) -> None:
        self._known[name] = None
        self._known.move_to_end(name)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
