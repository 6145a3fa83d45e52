"""Finding again what an index that was lost or damaged knew.

Files become rows in batches, while the mirror serves.  None of them is trusted: each is hashed
before it is served for the first time (``store.objects``).
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from mirror.store.local.layout import Layout

_log = logging.getLogger(__name__)
_BATCH = 200  # rows in one visit to the index's thread: some 20 ms, which hits have to wait


async def rebuild(
    layout: Layout,
    include: Callable[[list[str]], Awaitable[int]],
    run: Callable[[Callable[[], list[str]]], Awaitable[list[str]]],
) -> None:
    """Offer the names of all files to ``include``; ``run`` runs what blocks.

    Raises:
        OSError, IndexUnavailableError: it has to be begun again.
    """
    _log.warning("the index of %s was lost: finding its files again", layout.root)
    found = 0
    names = _names(layout)
    while batch := await run(lambda: list(islice(names, _BATCH))):
        found += await include(batch)
    layout.rebuild.unlink(missing_ok=True)
    _log.warning("%d objects found; each is verified before it is served", found)


def _names(layout: Layout) -> Iterator[str]:
    for directory in layout.directories():
        yield from (str(file.relative_to(layout.root)) for file in directory.iterdir())
