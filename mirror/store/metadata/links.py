"""Links: which private objects belong to which repository, as its upstream confirmed.

A client may request a cached private object through a repository other than the one that cached
it, and may have access to that repository only.  The mirror serves the object only if the
requested repository has a link to it.
"""

import logging
from typing import Final

from mirror.lru import Lru
from mirror.store.interface import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore

_log = logging.getLogger(__name__)
_KNOWN: Final = 10_000  # held in memory: each pull of a private image checks every layer


class Links:
    """Links by name; the caller chooses unique names."""

    def __init__(self, records: KeyValueStore) -> None:
        self._records = records
        self._known: Lru[str, bool] = Lru(_KNOWN)

    async def has(self, name: str) -> bool:
        if self._known.get(name):
            return True
        if await self._records.lookup(f"link {name}") is None:
            return False
        self._known.put(name, True)
        return True

    async def put(self, name: str) -> None:
        """Record a link that upstream has just confirmed.

        If the write fails, the mirror asks upstream again at the next request.
        """
        try:
            await self._records.put(f"link {name}", b"")
        except IndexUnavailableError as error:
            _log.info("cannot write a repository link: %s", error)
        else:
            self._known.put(name, True)
