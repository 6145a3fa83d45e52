"""Names to addresses, without letting a registry in the Internet point into a private network.

What a registry redirects to is fetched by the mirror, which often stands where its clients do not.
A registry that is itself at a private address may redirect there: its storage is next to it.
"""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from mirror.upstream.addresses import is_private


class PrivateAddressError(OSError):
    """A public registry leads to a private address."""


class GuardedResolver(AbstractResolver):
    """The system's resolver, which refuses private addresses to public registries."""

    def __init__(self, own: str, inner: AbstractResolver | None = None) -> None:
        """Guard the registry whose host is ``own``."""
        self._own = own
        self._inner = inner if inner is not None else DefaultResolver()
        self._private = is_private(own)

    def check(self, host: str) -> None:
        """Check an address that needs no resolving.

        Raises:
            PrivateAddressError: it is a private one, and the registry's is not.
        """
        if is_private(host) and not self._private:
            raise PrivateAddressError(f"{host} is a private address")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name.

        Raises:
            OSError: it has none.
            PrivateAddressError: it has only private ones, and the registry's is not.
        """
        found = await self._inner.resolve(host, port, family)
        if host == self._own:
            self._private = any(is_private(result["host"]) for result in found)
        if host == self._own or self._private:
            return found
        public = [result for result in found if not is_private(result["host"])]
        if found and not public:
            raise PrivateAddressError(f"{host} has a private address")
        return public

    async def close(self) -> None:
        """Close the system's resolver."""
        await self._inner.close()
