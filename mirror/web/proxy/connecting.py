"""Connections to servers that clients are let through to.

A name is resolved once, and what is connected to is the address that was checked: what a name
server says a moment later (DNS rebinding) does not matter.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohappyeyeballs

from mirror.web.proxy.destination import Destination
from mirror.web.proxy.errors import TunnelError
from mirror.web.proxy.permission import check_address

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Resolve = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]
_STAGGER_SECONDS: Final = 0.25  # RFC 8305, 5


async def resolve_by_system(host: str, port: int) -> Sequence[AddressInfo]:
    """The addresses of a host, as the system knows them.

    Raises:
        OSError: it has none.
    """
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


class Connector:
    """Connects to servers."""

    def __init__(self, seconds: float, resolve: Resolve = resolve_by_system) -> None:
        """Give resolving and connecting so many seconds together."""
        self._seconds = seconds
        self._resolve = resolve

    async def connect(self, destination: Destination, *, private: bool) -> socket.socket:
        """A connected socket, which never blocks.

        Raises:
            TunnelError: it has only addresses that are private, and these are not fine, or none
                that can be connected to.
        """
        try:
            async with asyncio.timeout(self._seconds):
                addresses = await self._addresses(destination, private=private)
                return await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_STAGGER_SECONDS, interleave=1
                )
        except TimeoutError as error:
            text = f"{destination} did not answer within {self._seconds:g} s"
            raise TunnelError(504, f"{text} ([fetch] connect_timeout)") from error
        except OSError as error:
            reason = error.strerror or "it cannot be reached"
            raise TunnelError(502, f"cannot connect to {destination}: {reason}") from error

    async def _addresses(self, destination: Destination, *, private: bool) -> list[AddressInfo]:
        try:
            found = await self._resolve(destination.host, destination.port)
        except (OSError, UnicodeError) as error:
            text = f"the name {destination.host} does not resolve"
            raise TunnelError(502, f"{text}: see whether it is right, and DNS there") from error
        refusal: TunnelError | None = None
        addresses = []
        for info in found:
            try:
                check_address(destination, info[4][0], private=private)
                addresses.append(info)
            except TunnelError as error:
                refusal = error
        if not addresses:
            raise refusal or TunnelError(502, f"the name {destination.host} has no address")
        return addresses
