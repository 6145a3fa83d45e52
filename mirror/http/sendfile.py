"""Send files to sockets with ``os.sendfile``, at nginx's cost per byte.

``os.sendfile`` runs in a thread, once per writable event and for a bounded piece.  So a fast
client or a page that is still on the disk does not block the event loop, and a slow client does
not occupy a thread.  TCP_CORK fills the segments: sendfile without it costs 1.6 times the CPU.
"""

import asyncio
import contextlib
import math
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from mirror.descriptor import Descriptor, FileRange

_PIECE_BYTES: Final = 16 * 1024 * 1024  # per call: with a fast client a call would not end
#: A client has a thread for one turn: the long turn for up to _FEW clients, else the short one.
#: Returning to the loop after each piece cost a single fast client a fifth of its throughput.
_TURN_SECONDS: Final = 0.05
_SHORT_TURN_SECONDS: Final = 0.01
_FEW: Final = 4
_INLINE_BYTES: Final = 128 * 1024  # below it the hop to a thread costs more than the copy
#: How long a thread waits for room in a client's socket before it gives up its turn: for a client
#: that has kept up so far, and for any other.
_FAST_MS: Final = 10
_BRIEF_MS: Final = 2
_SLOW_BYTES: Final = 256 * 1024
_CORK: Final = getattr(socket, "TCP_CORK", None)  # Linux
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", None)  # Linux
_DRAIN_SECONDS: Final = 0.002
_UNSENT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux, macOS
#: Limits of unsent data in the kernel, for all clients together and for each.  The kernel's own
#: limit is up to 4 MiB per client: a thousand slow clients use up the host's memory for TCP, and
#: then every connection waits for seconds.
_UNSENT_BYTES: Final = 256 * 1024 * 1024
_LEAST_UNSENT_BYTES: Final = 128 * 1024
_MOST_UNSENT_BYTES: Final = 4 * 1024 * 1024  # less wakes the thread more often: a third more CPU
_MANY: Final = 32  # above it each client is slow or has a small share: threads gain nothing


class StalledError(OSError):
    """The client has accepted no data for the stall time."""


class Sender:
    """Sends parts of files to clients."""

    def __init__(self, threads: Executor, stall_seconds: float) -> None:
        """Give up on a client that accepts no data for ``stall_seconds``."""
        self._threads = threads
        self._stall_seconds = stall_seconds
        self._sending = 0

    @staticmethod
    def can_send(transport: asyncio.Transport) -> bool:
        """Whether the transport is a plain socket: with TLS, sendfile would bypass encryption."""
        encrypted = transport.get_extra_info("sslcontext") is not None
        return not encrypted and transport.get_extra_info("socket") is not None

    async def send(
        self, transport: asyncio.Transport, piece: FileRange, sent: Callable[[int], None]
    ) -> None:
        """Send a piece; ``sent`` is called with the number of bytes of each step.

        Raises:
            OSError: the client has gone or stalled, or the file is shorter than the piece.
        """
        async with self._raw(transport) as (connection, out):
            position, end = piece.offset, piece.offset + piece.length
            slow, wait_ms = self._sending > _MANY, _FAST_MS
            with _StallTimer(self._stall_seconds) as patience:
                while position < end:
                    span = position, end
                    step, full = await self._step(out, piece.descriptor, span, wait_ms, slow=slow)
                    position += step
                    sent(step)
                    if full:
                        self._share(connection)
                        await patience.writable(out.fileno())
                    slow = full and self._sending > _MANY
                    wait_ms = _BRIEF_MS if full else _FAST_MS

    @asynccontextmanager
    async def _raw(
        self, transport: asyncio.Transport
    ) -> AsyncIterator[tuple[socket.socket, Descriptor]]:
        """Yield the client's socket, and a duplicate descriptor that the loop does not watch."""
        while transport.get_write_buffer_size():  # rare: headers that the socket did not accept
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
            await asyncio.sleep(_DRAIN_SECONDS)
        connection = transport.get_extra_info("socket")
        if connection is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        out = Descriptor(os.dup(connection.fileno()))
        self._sending += 1
        self._share(connection)
        try:
            with _corked(connection):
                yield connection, out
        finally:
            self._sending -= 1
            out.close()

    def _share(self, connection: socket.socket) -> None:
        """Limit the client's unsent data in the kernel to its share of the total."""
        if _UNSENT is not None and connection.family != socket.AF_UNIX:
            share = max(_UNSENT_BYTES // self._sending, _LEAST_UNSENT_BYTES)
            share = min(share, _MOST_UNSENT_BYTES)
            connection.setsockopt(socket.IPPROTO_TCP, _UNSENT, share)

    async def _step(
        self, out: Descriptor, fd: Descriptor, span: tuple[int, int], wait_ms: int, *, slow: bool
    ) -> tuple[int, bool]:
        """Send a part of ``span``; return the bytes sent, and whether the socket is full.

        Little data in the page cache is sent on the loop: the hop to a thread costs as much as
        copying 100 KiB.  Everything else is sent by a thread, which may wait for the disk.
        """
        offset, count = span[0], span[1] - span[0]
        little = count if count <= _INLINE_BYTES else min(count, _SLOW_BYTES) if slow else 0
        if little and _at_hand(fd, offset, little):
            return _sendfile(out, fd, offset, little)
        turn = _TURN_SECONDS if self._sending <= _FEW else _SHORT_TURN_SECONDS
        step = asyncio.get_running_loop().run_in_executor(
            self._threads, _sendfile, out, fd, offset, count, wait_ms, turn
        )
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            await _ended(step)  # nothing else may be written to the socket before the step ends
            raise

    async def read(self, piece: FileRange, position: int, count: int) -> bytes:
        """Read bytes of a piece's file, for a connection that cannot use sendfile.

        Raises:
            OSError: the file cannot be read, or ends before ``position``.
        """
        part = piece.part(position, position + count)
        # For TLS the hop to a thread costs more than to copy 256 KiB: it halves the rate.
        if _at_hand(piece.descriptor, position, count):
            data = part.read()
        else:
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(self._threads, part.read)
        if not data:
            raise OSError("the file is shorter than it was")
        return data

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Limit the time that the code inside waits for a client.

        Raises:
            StalledError: the client accepted no data for the stall time.
        """
        try:
            async with asyncio.timeout(self._stall_seconds):
                yield
        except TimeoutError as error:
            raise StalledError(f"accepted no data for {self._stall_seconds:g} s") from error


async def _ended(step: asyncio.Future[tuple[int, bool]]) -> None:
    """Wait for a thread even if this task is cancelled; its wait for the client is short."""
    while not step.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    step.exception()  # else asyncio logs an exception that was never retrieved


def _sendfile(
    out: Descriptor,
    fd: Descriptor,
    offset: int,
    count: int,
    wait_ms: int = 0,
    turn: float = math.inf,
) -> tuple[int, bool]:
    """Send what the socket accepts within ``turn`` seconds; return as ``_step`` does.

    If the client makes room within ``wait_ms``, the thread goes on without returning to the loop.
    """
    with out as client, fd as file:
        return _sent(client, file, offset, count, wait_ms, turn)


def _sent(
    out: int, fd: int, offset: int, count: int, wait_ms: int, turn: float
) -> tuple[int, bool]:
    sent = 0
    until = time.monotonic() + turn
    while sent < count:
        try:
            step = os.sendfile(out, fd, offset + sent, min(count - sent, _PIECE_BYTES))
        except BlockingIOError:
            if not wait_ms or not _writable_within(out, wait_ms):
                return sent, True
            continue
        if step == 0:
            raise OSError("the file is shorter than it was")
        sent += step
        if time.monotonic() >= until:
            break
    return sent, False


def _writable_within(out: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    return bool(poll.poll(milliseconds))


def _at_hand(fd: Descriptor, offset: int, count: int) -> bool:
    """Whether data is in the page cache; only its last byte is checked."""
    if _NOWAIT is None:
        return True
    with fd as file:
        try:
            os.preadv(file, [bytearray(1)], offset + count - 1, _NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # the file system does not support RWF_NOWAIT
            return _is_in_memory(os.fstat(file).st_dev)
    return True


@lru_cache(maxsize=64)
def _is_in_memory(device: int) -> bool:
    """Whether a device is a tmpfs, which does not support RWF_NOWAIT and never waits for a disk."""
    number = f" {os.major(device)}:{os.minor(device)} "
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    return any(number in line and " - tmpfs " in line for line in lines)


class _StallTimer:
    """Waits for one client with one timer per piece: one per wait would double a wait's cost."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._waits = self._seen = 0
        self._writable: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def writable(self, out: int) -> None:
        """Wait until the socket accepts data.

        Raises:
            StalledError: it accepted none for between one and two times the stall time.
        """
        self._waits += 1
        future = self._writable = self._loop.create_future()
        self._loop.add_writer(out, _resolve, future)
        try:
            await future
        finally:
            self._loop.remove_writer(out)
            self._writable = None

    def _look(self) -> None:
        waiting = self._writable
        if waiting is not None and not waiting.done() and self._waits == self._seen:
            waiting.set_exception(StalledError(f"accepted no data for {self._seconds:g} s"))
        self._seen = self._waits
        self._timer = self._loop.call_later(self._seconds, self._look)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def _corked(connection: socket.socket) -> Iterator[None]:
    if _CORK is None or connection.family == socket.AF_UNIX:
        yield
        return
    connection.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the socket may be closed
            connection.setsockopt(socket.IPPROTO_TCP, _CORK, 0)
