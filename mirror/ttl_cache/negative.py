"""What upstream said it does not have, for a short while."""

from mirror.ttl_cache.backend import Backend


class Negatives:
    """Names that upstream answered with 404, and what it said."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Believe a 404 for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> str | None:
        """What upstream said of a name it does not have, or None."""
        said = await self._backend.get(f"negative {name}")
        return None if said is None else said.decode()

    async def put(self, name: str, said: str) -> None:
        """Upstream has just answered 404."""
        await self._backend.set(f"negative {name}", said.encode(), self._max_age)

    async def forget(self, name: str) -> None:
        """The name was seen after all."""
        await self._backend.delete(f"negative {name}")
