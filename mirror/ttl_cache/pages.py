"""Fresh pages of listings (tags, referrers)."""

from collections.abc import Mapping
from typing import Any, Final

from mirror.ttl_cache.backend import Backend

_MAX_BYTES: Final = 256 * 1024  # larger pages are not cached, which bounds the memory


class Pages:
    """Pages by name: the body and the header fields."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Pages are fresh for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """The page, None if none is fresh."""
        page: tuple[bytes, Mapping[str, Any]] | None = await self._backend.get(f"page {name}")
        return page

    async def put(self, name: str, body: bytes, fields: Mapping[str, Any]) -> None:
        """Store a page that upstream has just sent, unless it is too large."""
        if len(body) <= _MAX_BYTES:
            page = body, dict(fields)
            await self._backend.set(f"page {name}", page, self._max_age, len(body))
