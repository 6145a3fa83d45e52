"""How long a test waits for an event: one limit, far above what a busy machine needs."""

import asyncio
from collections.abc import Callable

LIMIT_SECONDS = 240.0  # pytest's own, 900 s, is the outer one


def limit() -> asyncio.Timeout:
    """The limit of a wait: ``async with limit(): await event``."""
    return asyncio.timeout(LIMIT_SECONDS)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    async with limit():
        while not condition():
            await asyncio.sleep(0.02)
