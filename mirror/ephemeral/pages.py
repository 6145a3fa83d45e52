"""Pages of listings (tags, referrers), while they are fresh."""

import json
from collections.abc import Mapping
from typing import Final

from mirror.ephemeral.backend import Backend

_MAX_BYTES: Final = 256 * 1024  # what is larger is asked for again: a crowd of pages stays bounded


class Pages:
    """A body and its header fields by name."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Hold what is put for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> tuple[bytes, Mapping[str, str]] | None:
        """The page, or None."""
        record = await self._backend.get(f"page {name}")
        if record is None:
            return None
        fields, _, body = record.partition(b"\n")
        return body, json.loads(fields)

    async def put(self, name: str, body: bytes, fields: Mapping[str, str]) -> None:
        """Upstream has just said so."""
        if len(body) > _MAX_BYTES:
            return
        record = json.dumps(dict(fields)).encode() + b"\n" + body
        await self._backend.set(f"page {name}", record, self._max_age)
