"""Resolves names, and stops a public registry from redirecting into a private network.

The mirror follows the redirects of a registry, and can often reach networks that its clients
cannot.  A registry at a private address may redirect to one: its storage is next to it.
"""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from mirror.upstream.addresses import is_private


class PrivateAddressError(OSError):
    """A public registry redirects to a private address."""


class GuardedResolver(AbstractResolver):
    """The system's resolver; it refuses private addresses for public registries."""

    def __init__(self, own: str, inner: AbstractResolver | None = None) -> None:
        """``own`` is the host of the registry."""
        self._own = own
        self._inner = inner if inner is not None else DefaultResolver()
        self._private = is_private(own)

    def check(self, host: str) -> None:
        """Check a host that is an address and is not resolved.

        Raises:
            PrivateAddressError: the address is private and that of the registry is not.
        """
        if is_private(host) and not self._private:
            raise PrivateAddressError(f"{host} is a private address")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            OSError: the name has no address.
            PrivateAddressError: all its addresses are private and that of the registry is not.
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
