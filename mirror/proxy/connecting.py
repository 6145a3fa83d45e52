"""Connections to servers that clients are let through to.

A name is resolved once, and what is connected to is the address that was checked: what a name
server says a moment later (DNS rebinding) does not matter.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aiohappyeyeballs

from mirror.proxy.destination import Destination
from mirror.proxy.errors import TunnelError
from mirror.proxy.parent import ask_parent
from mirror.proxy.permission import check_address, leads_inside
from mirror.upstream.proxies import Proxy

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
    """Connects to servers, through a proxy of the mirror's own where there is one."""

    def __init__(
        self,
        seconds: float,
        resolve: Resolve = resolve_by_system,
        parent: Callable[[Destination], Proxy | None] = lambda _: None,
    ) -> None:
        """Give resolving and connecting so many seconds together.

        ``parent`` says which proxy leads to a server, None where none is needed.
        """
        self._seconds = seconds
        self._resolve = resolve
        self._parent = parent

    async def connect(self, destination: Destination, *, private: bool) -> socket.socket:
        """A connected socket, which never blocks.

        Raises:
            TunnelError: it has only addresses that are private, and these are not fine, or none
                that can be connected to.
        """
        parent = self._parent(destination)
        place = str(destination) if parent is None else f"{destination} through the proxy {parent}"
        try:
            async with asyncio.timeout(self._seconds):
                if parent is not None:
                    return await self._through(parent, destination, private=private)
                return await _started(await self._addresses(destination, private=private))
        except TimeoutError as error:
            text = f"{place} did not answer within {self._seconds:g} s"
            raise TunnelError(504, f"{text} ([fetch] connect_timeout)") from error
        except OSError as error:
            reason = error.strerror or "it cannot be reached"
            raise TunnelError(502, f"cannot connect to {place}: {reason}") from error

    async def _through(
        self, parent: Proxy, destination: Destination, *, private: bool
    ) -> socket.socket:
        """Connect through a proxy, which may know names that nobody knows here."""
        url = parent.url
        if url.scheme != "http" or url.host is None or url.port is None:
            raise TunnelError(502, f"tunnels go through a proxy over http only, not {parent}")
        known: Sequence[AddressInfo] = ()
        with contextlib.suppress(OSError, UnicodeError):
            known = await self._resolve(destination.host, destination.port)
        for info in known:
            check_address(destination, info[4][0], private=private)
        if any(leads_inside(info[4][0]) for info in known):
            return await _started(known)  # what is near and may be had is no matter of that proxy
        raw = await _started(await self._resolve(url.host, url.port))
        try:
            await ask_parent(raw, parent, destination)
        except BaseException:
            raw.close()
            raise
        return raw

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


async def _started(addresses: Sequence[AddressInfo]) -> socket.socket:
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=_STAGGER_SECONDS, interleave=1
    )
