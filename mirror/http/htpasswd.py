"""Who may use the mirror, by an htpasswd file with bcrypt hashes (``htpasswd -B``)."""

import asyncio
import hashlib
import ipaddress
import logging
import re
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Final

import bcrypt

from mirror.http.forwarded import lookup_address
from mirror.http.turns import Turns
from mirror.threads import Threads

_log = logging.getLogger(__name__)
_REMEMBERED: Final = 1000
_MAX_PASSWORD_BYTES: Final = 72  # all that bcrypt looks at, and newer versions refuse more
_MOST_WAITING: Final = 64  # of one client
_USUAL_COST: Final = 10  # of a file without users
# Cost (4 to 31), 16 bytes of salt, and 23 bytes that salt and password make.
_HASH: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53,}", re.ASCII)


class HtpasswdError(ValueError):
    """The file is no htpasswd file with bcrypt hashes."""


def parse_htpasswd(text: str) -> dict[str, bytes]:
    """Users and their bcrypt hashes.

    Raises:
        HtpasswdError: a line is something else.
    """
    users = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, hashed = line.strip().partition(":")
        if not (user and colon and _HASH.fullmatch(hashed)):
            raise HtpasswdError(f"line {number} is no user with a bcrypt hash (htpasswd -B)")
        users[user] = hashed.encode()
    return users


class Htpasswd:
    """The users of a file, read again when it changes."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            OSError, HtpasswdError: it cannot be used.
        """
        self._file = file
        self._users: dict[str, bytes] = {}
        self._cost = _USUAL_COST
        self._read = 0
        # Of a password its hash under a key of this process, and never the password itself.
        self._remembered: OrderedDict[tuple[str, bytes, bytes], None] = OrderedDict()
        self._key = secrets.token_bytes(32)
        # One thread: a bcrypt costs 50 ms, and guessing must not take the machine.
        self._thread = Threads(1, "bcrypt")
        self._turns = Turns(1, 1, _MOST_WAITING)
        self._load()

    def reload(self) -> None:
        """Read the file again if it has changed; a mistake in it leaves all as it was."""
        try:
            self._load()
        except (OSError, HtpasswdError) as error:
            _log.error("%s: %s; the former users stay", self._file, error)

    def _load(self) -> None:
        changed = self._file.stat().st_mtime_ns
        if changed != self._read:
            self._read = changed
            self._users = parse_htpasswd(self._file.read_text(encoding="utf-8"))
            self._cost = max(map(_cost, self._users.values()), default=_USUAL_COST)
            _log.info("%s: %d users", self._file, len(self._users))

    async def knows(self, user: str, password: str, client: str = "") -> bool:
        """Whether the password is that user's; clients that ask take turns.

        Raises:
            LineFullError: too many questions of the client wait already.
        """
        hashed = self._users.get(user, b"")
        secret = password.encode()[:_MAX_PASSWORD_BYTES]
        # With the hash of the file in it, a changed password is a new question.
        pair = user, hashed, hashlib.blake2b(secret, key=self._key).digest()
        if self._remembers(pair):
            return True
        async with self._turns.turn(_home(client)):
            if self._remembers(pair):  # several connections of a client begin at once
                return True
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._thread, _is_right, secret, hashed, self._cost)
            if right:
                self._remembered[pair] = None
                if len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
            return right

    def _remembers(self, pair: tuple[str, bytes, bytes]) -> bool:
        if pair not in self._remembered:
            return False
        self._remembered.move_to_end(pair)
        return True

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _is_right(secret: bytes, hashed: bytes, highest: int) -> bool:
    """Whether a password is the one of a hash, which is empty for a name that is not in the file.

    A wrong answer takes as long as a hash of the ``highest`` cost for every name, so that the time
    does not tell which names there are: work doubles with each step of the cost, so a hash of
    every cost from the lower one on adds up to one of the highest.
    """
    try:
        if hashed and bcrypt.checkpw(secret, hashed):
            return True
    except ValueError:  # the last character of a salt has bits that no salt has
        hashed = b""
    for cost in range(_cost(hashed), highest) if hashed else (highest,):
        bcrypt.checkpw(secret, bcrypt.gensalt(cost) + b"." * 31)
    return False


def _cost(hashed: bytes) -> int:
    return int(hashed.split(b"$")[2])


def _home(client: str) -> str:
    """What counts as one client: an address, of IPv6 the network of one host (RFC 6177)."""
    address = lookup_address(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client
