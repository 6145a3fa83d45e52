"""Recent refusals of upstream."""

from mirror.ttl_cache.backend import Backend


class Negatives:
    """Texts of refusals, by the name of the request; see ``pull.refusals``."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Refusals expire after ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> str | None:
        """The text of the refusal, or None."""
        said = await self._backend.get(f"negative {name}")
        return None if said is None else said.decode()

    async def put(self, name: str, said: str) -> None:
        """Store the text of a refusal."""
        await self._backend.set(f"negative {name}", said.encode(), self._max_age)

    async def forget(self, name: str) -> None:
        """Remove a refusal, if there is one."""
        await self._backend.delete(f"negative {name}")
