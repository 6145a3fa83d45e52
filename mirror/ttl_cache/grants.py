"""Whom upstream has let into a repository, for a short while."""

from mirror.ttl_cache.backend import Backend


class Grants:
    """Names of visitors and repositories, while upstream's word on them holds."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Believe upstream for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def holds(self, name: str) -> bool:
        """Whether upstream has said yes, and not too long ago."""
        return await self._backend.get(f"grant {name}") is not None

    async def put(self, name: str) -> None:
        """Upstream has just said yes, when it had looked at the credentials themselves."""
        await self._backend.set(f"grant {name}", b"", self._max_age)

    async def forget(self, name: str) -> None:
        """Upstream says no."""
        await self._backend.delete(f"grant {name}")
