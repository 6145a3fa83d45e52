"""Opens and closes the ledger and the recorder that writes into it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirror.server.recorder import StatsRecorder
from mirror.server.store import Store
from mirror.stats.ledger import Ledger


@asynccontextmanager
async def opened_stats(store: Store) -> AsyncIterator[StatsRecorder]:
    """Record statistics while the context is open; errors of the ledger do not stop the mirror."""
    ledger = Ledger(store.layout.ledger)
    books = StatsRecorder(ledger)
    writing = asyncio.create_task(books.run(), name="ledger")
    try:
        yield books
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await ledger.close()
