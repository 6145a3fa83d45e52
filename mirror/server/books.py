"""The ledger, opened and closed, and whoever writes into it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirror.server.recorder import StatsRecorder
from mirror.server.store import Store
from mirror.stats.ledger import Ledger


@asynccontextmanager
async def opened_stats(store: Store) -> AsyncIterator[StatsRecorder]:
    """Keep the ledger of a cache directory while the context is open; trouble keeps nobody."""
    ledger = Ledger(store.layout.ledger)
    books = StatsRecorder(ledger)
    writing = asyncio.create_task(books.run(), name="ledger")
    try:
        yield books
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await ledger.close()
