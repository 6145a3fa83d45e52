"""Recent grants: upstream has given a client access to a repository."""

from mirror.ttl_cache.backend import Backend


class Grants:
    """Grants, by the names of the repository and the principal; see ``pull.private_access``."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Grants expire after ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def holds(self, name: str) -> bool:
        """Whether the grant exists and has not expired."""
        return await self._backend.get(f"grant {name}") is not None

    async def put(self, name: str) -> None:
        """Store a grant; upstream must just have checked the credentials themselves."""
        await self._backend.set(f"grant {name}", b"", self._max_age)

    async def forget(self, name: str) -> None:
        """Remove a grant, since upstream refuses access."""
        await self._backend.delete(f"grant {name}")
