"""The sockets on which clients connect: opening, naming, closing.  Knows no HTTP.

Several processes can share them: each process opens its own TCP sockets with ``reuse_port``; one
process opens the unix sockets, and the others inherit them.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Final

from mirror.config.addresses import Address, TcpAddress, UnixAddress
from mirror.config.model import Config
from mirror.user_error import UserError

BACKLOG: Final = 1024
#: asyncio uses its ``backlog`` both as the length of the queue and as the number of connections
#: accepted in one turn; a thousand accepted at once take as many files before the first is counted.
ACCEPTED_AT_ONCE: Final = 16
_ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})  # IPv6 is switched off
_PROBE_SECONDS: Final = 1.0
_FIRST_ACTIVATED: Final = 3  # SD_LISTEN_FDS_START
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


class ListenError(UserError):
    """A socket cannot be opened; ``what`` failed, and advice."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


class Purpose(Enum):
    """What clients of a socket want: images, an HTTP(S) proxy, or metrics and health only."""

    IMAGES = auto()
    PROXY = auto()
    METRICS = auto()


class Listener:
    """A bound, listening, non-blocking socket and its address."""

    def __init__(
        self,
        address: Address,
        raw: socket.socket,
        file: os.stat_result | None,
        purpose: Purpose = Purpose.IMAGES,
    ) -> None:
        """Take over ``raw``.

        ``file`` is the socket file to remove on close, None if there is none.
        """
        self.purpose = purpose
        self.address = address
        self.raw = raw
        self._file = file

    @property
    def over_tcp(self) -> bool:
        """Whether TLS applies to this socket, if configured."""
        return isinstance(self.address, TcpAddress)

    def twin(self) -> "Listener":
        """Open another socket on the same address, for another process.

        Raises:
            UserError: the address cannot be bound again.
        """
        family, both = self.raw.family, False
        try:
            if family == socket.AF_INET6:
                both = not self.raw.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            raw = _bound(family, self.raw.getsockname(), both=both, reuse_port=True)
        except OSError as error:
            raise _refused(self.address, error) from error
        return Listener(self.address, raw, None, self.purpose)

    def queue_many(self) -> None:
        """Set the length of the queue, which asyncio has set to the few that it accepts at once."""
        self.raw.listen(BACKLOG)

    def withdraw(self) -> None:
        """Remove the socket file; call it before ``close``, so that no other file can match."""
        made, self._file = self._file, None
        if made is None or not isinstance(self.address, UnixAddress):
            return
        with contextlib.suppress(OSError):  # removed already, or the directory is read-only now
            if os.path.samestat(made, self.address.path.lstat()):
                self.address.path.unlink()

    def close(self) -> None:
        self.withdraw()
        self.raw.close()


@contextlib.contextmanager
def opened_listeners(config: Config, *, reuse_port: bool = False) -> Iterator[list[Listener]]:
    """Open all sockets of a configuration: those passed by systemd, else those of ``listen``.

    Raises:
        UserError: one cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        opened = _open_listeners(config, reuse_port=reuse_port)
        yield [stack.enter_context(contextlib.closing(listener)) for listener in opened]


@contextlib.contextmanager
def opened_worker_listeners(config: Config, workers: int) -> Iterator[list[list[Listener]]]:
    """Open the sockets of several processes, one list for each.

    Each process has its own TCP sockets, among which the kernel spreads clients (SO_REUSEPORT); all
    share the unix sockets.

    Raises:
        UserError: one cannot be opened.
    """
    with opened_listeners(config, reuse_port=True) as first, contextlib.ExitStack() as stack:

        def own(listener: Listener) -> Listener:
            raw = listener.raw
            if listener.over_tcp and raw.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
                return stack.enter_context(contextlib.closing(listener.twin()))
            return listener

        yield [first, *(list(map(own, first)) for _ in range(1, workers))]


def _open_listeners(config: Config, *, reuse_port: bool = False) -> Iterator[Listener]:
    """Open the sockets one after another.

    Raises:
        UserError: one cannot be opened.
    """
    if activated := _activated_sockets():
        yield from map(_activated, activated)
    else:
        yield from _open_all(config, config.server.addresses(), reuse_port=reuse_port)
    others = (
        (Purpose.PROXY, config.proxy.addresses(), "[proxy] listen"),
        (Purpose.METRICS, config.server.metrics_addresses(), "[server] metrics_listen"),
    )
    for purpose, addresses, key in others:
        try:
            for listener in _open_all(config, addresses, reuse_port=reuse_port):
                listener.purpose = purpose
                yield listener
        except ListenError as error:
            raise ListenError(error.what, f"choose another with {key}") from error


def _open_all(
    config: Config, addresses: Iterable[Address], *, reuse_port: bool
) -> Iterator[Listener]:
    for address in addresses:
        if isinstance(address, TcpAddress):
            if reuse_port:  # or another program's port would be shared silently
                for probe in open_tcp(address):
                    probe.close()
            yield from open_tcp(address, reuse_port=reuse_port)
        else:
            yield open_unix(address, int(config.server.socket_mode, 8))


def open_tcp(address: TcpAddress, *, reuse_port: bool = False) -> list[Listener]:
    """Listen over TCP; returns several sockets if the name has several addresses.

    Raises:
        UserError: the address cannot be used.
    """
    opened: list[Listener] = []
    absent: OSError | None = None
    try:
        for family, place in _places(address):
            try:
                raw = _bound(family, place, both=not address.host, reuse_port=reuse_port)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                opened.append(Listener(_address_of(raw, address.host), raw, None))
        if absent is not None and not opened:
            raise absent
    except OSError as error:
        for listener in opened:
            listener.close()
        raise _refused(address, error) from error
    return opened


def open_unix(address: UnixAddress, mode: int) -> Listener:
    """Listen on a unix socket; replaces the socket file of a dead process.

    Raises:
        UserError: the path cannot be used.
    """
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_way(address.path)
        raw.bind(str(address.path))
        address.path.chmod(mode)  # before listen(): no client may connect without permission
        return Listener(address, _listening(raw), address.path.lstat())
    except OSError as error:
        raw.close()
        raise _refused(address, error) from error


def _places(address: TcpAddress) -> Iterable[tuple[int, tuple[object, ...]]]:
    """Families and addresses to bind; one dual-stack socket for both families if the system can."""
    if not address.host:
        both = [(socket.AF_INET6, ("::", address.port))] if socket.has_ipv6 else []
        if both and socket.has_dualstack_ipv6():
            return both
        return [(socket.AF_INET, ("0.0.0.0", address.port)), *both]  # noqa: S104  # as configured
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return dict.fromkeys((family, place) for family, *_, place in found)


def _bound(
    family: int, place: tuple[object, ...], *, both: bool, reuse_port: bool
) -> socket.socket:
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol.
    raw = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            alone = not (both and socket.has_dualstack_ipv6())
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        raw.bind(place)
        return _listening(raw)
    except OSError:
        raw.close()
        raise


def _listening(raw: socket.socket) -> socket.socket:
    raw.listen(BACKLOG)
    raw.setblocking(False)
    return raw


def _activated_sockets() -> list[socket.socket]:
    """Return the sockets that systemd passed to this process, sd_listen_fds(3).

    Works once: it removes the LISTEN_* variables, and marks the sockets as not inheritable.

    Raises:
        UserError: one of them is not a listening stream socket.
    """
    named = {name: os.environ.get(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if named["PID"] != str(os.getpid()) or not named["FDS"].isdecimal():
        return []
    for name in named:
        os.environ.pop(f"LISTEN_{name}", None)
    names = named["FDNAMES"].split(":")
    return [
        _adopted(_FIRST_ACTIVATED + number, names[number] if number < len(names) else "")
        for number in range(int(named["FDS"]))
    ]


def _adopted(descriptor: int, name: str) -> socket.socket:
    mistake = UserError(
        f"systemd passed a file descriptor ({descriptor}, {name or 'without a name'}) that is not "
        "a listening socket: the socket unit needs ListenStream= and Accept=no"
    )
    try:
        os.set_inheritable(descriptor, False)
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        raise mistake from error
    if adopted.family not in _FAMILIES or not _listens(adopted):
        adopted.close()
        raise mistake
    return adopted


def _listens(adopted: socket.socket) -> bool:
    stream = adopted.type == socket.SOCK_STREAM
    return stream and bool(adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _activated(raw: socket.socket) -> Listener:
    raw.setblocking(False)
    if raw.family == socket.AF_UNIX:  # systemd removes its file
        return Listener(UnixAddress(Path(raw.getsockname())), raw, None)
    v6 = raw.family == socket.AF_INET6
    both = v6 and not raw.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    host = raw.getsockname()[0]
    return Listener(_address_of(raw, "" if both and host == "::" else host), raw, None)


def _address_of(raw: socket.socket, host: str) -> TcpAddress:
    """The address as the user wrote it, with the actual port."""
    return TcpAddress(host, raw.getsockname()[1])


def _make_way(path: Path) -> None:
    """Remove the socket file of a dead process, and nothing else.

    Raises:
        OSError: the path is a socket in use, or not a socket.
    """
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise OSError(errno.EEXIST, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except TimeoutError as error:  # its queue is full, so a process has it
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _refused(address: Address, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return ListenError(f"cannot listen on {address}: {reason}", "choose another with --listen")
