"""Bearer tokens of upstreams, until shortly before they expire."""

from mirror.ttl_cache.backend import Backend


class Tokens:
    """Tokens by upstream and scope; they are never logged or written to disk."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def lookup(self, name: str) -> str | None:
        """The token, None if there is none or it has expired."""
        token = await self._backend.get(f"token {name}")
        return None if token is None else token.decode()

    async def put(self, name: str, token: str, ttl: float) -> None:
        """Store a token for ``ttl`` seconds."""
        await self._backend.set(f"token {name}", token.encode(), ttl)

    async def forget(self, name: str) -> None:
        """Remove a token that upstream has refused."""
        await self._backend.delete(f"token {name}")
