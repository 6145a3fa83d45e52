"""Pages of listings (tags, referrers), while they are fresh."""

from collections.abc import Mapping
from typing import Any, Final

from mirror.ttl_cache.backend import Backend

_MAX_BYTES: Final = 256 * 1024  # what is larger is asked for again: a crowd of pages stays bounded


class Pages:
    """A body and its header fields by name."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Hold what is put for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """The page, or None."""
        page: tuple[bytes, Mapping[str, Any]] | None = await self._backend.get(f"page {name}")
        return page

    async def put(self, name: str, body: bytes, fields: Mapping[str, Any]) -> None:
        """Upstream has just said so."""
        if len(body) <= _MAX_BYTES:
            page = body, dict(fields)
            await self._backend.set(f"page {name}", page, self._max_age, len(body))
