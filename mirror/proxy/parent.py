"""CONNECT through the parent proxy, which the mirror itself has to use (RFC 9110, 9.3.6)."""

import asyncio
import base64
import re
import socket
from typing import Final
from urllib.parse import unquote

from yarl import URL

from mirror.proxy.destination import Destination
from mirror.proxy.errors import TunnelError
from mirror.upstream.proxies import Proxy

_MOST_HEAD: Final = 16 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[^\r\n]*\r?\n", re.ASCII)
_END: Final = (b"\r\n\r\n", b"\n\n")


async def ask_parent(raw: socket.socket, parent: Proxy, destination: Destination) -> None:
    """Make the parent proxy at the other end of ``raw`` connect to a server.

    Raises:
        TunnelError: the parent refuses, or its answer is not HTTP.
        OSError: the connection to the parent is lost.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, _request(parent.url, destination))
    head = b""
    # Byte by byte: the bytes behind the head come from the server and belong to the client.
    while not head.endswith(_END):
        piece = await loop.sock_recv(raw, 1) if len(head) < _MOST_HEAD else b""
        if not piece:
            raise TunnelError(502, f"the proxy {parent} does not answer a CONNECT as a proxy")
        head += piece
    status = _STATUS.match(head)
    if status is None or not status[1].startswith(b"2"):
        said = status[1].decode() if status else "its answer is not HTTP"
        text = f"the proxy {parent} does not connect to {destination}: {said}"
        raise TunnelError(502, f"{text} (it wants user and password)" if said == "407" else text)


def _request(parent: URL, destination: Destination) -> bytes:
    lines = [f"CONNECT {destination} HTTP/1.1", f"Host: {destination}"]
    if parent.raw_user is not None:
        login = f"{parent.user}:{unquote(parent.raw_password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()
