"""Sockets that systemd opened for the mirror: sd_listen_fds(3), without libsystemd."""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from mirror.user_error import UserError

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def activated_sockets(environment: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that systemd passed to the process ``pid``, or an empty list.

    Works once per process: it removes the LISTEN_* variables from ``environment``, and marks the
    sockets as not inheritable.

    Raises:
        UserError: one of them is not a listening stream socket.
    """
    named = {name: environment.get(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if named["PID"] != str(pid) or not named["FDS"].isdecimal():
        return []
    for name in named:
        environment.pop(f"LISTEN_{name}", None)
    names = named["FDNAMES"].split(":")
    return [
        _adopted(_FIRST + number, names[number] if number < len(names) else "")
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
