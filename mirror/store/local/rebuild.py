"""Rebuilds a lost or damaged index from the files.

Rows are inserted in batches while the mirror serves.  The files are not trusted: each is hashed
before it is served for the first time (``store.local.objects``).
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from mirror.store.local.layout import Layout

_log = logging.getLogger(__name__)
_BATCH = 200  # rows per call on the index's thread: about 20 ms, in which hits must wait


async def rebuild(
    layout: Layout,
    include: Callable[[list[str]], Awaitable[int]],
    run: Callable[[Callable[[], list[str]]], Awaitable[list[str]]],
) -> None:
    """Pass the names of all files to ``include``; ``run`` runs blocking work in a thread.

    Raises:
        OSError, IndexUnavailableError: the rebuild must be started again.
    """
    _log.warning("cache directory %s: index lost; rebuilding it from the files", layout.root)
    found = 0
    names = _names(layout)
    while batch := await run(lambda: list(islice(names, _BATCH))):
        found += await include(batch)
    layout.rebuild.unlink(missing_ok=True)
    _log.warning("index rebuilt: %d objects found; each is verified before it is served", found)


def _names(layout: Layout) -> Iterator[str]:
    for directory in layout.directories():
        yield from (str(file.relative_to(layout.root)) for file in directory.iterdir())
