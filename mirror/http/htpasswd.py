"""The mirror's users: an htpasswd file with bcrypt hashes (``htpasswd -B``)."""

import asyncio
import hashlib
import logging
import re
import secrets
from pathlib import Path
from typing import Final

import bcrypt

from mirror.http.turns import Turns
from mirror.lru import Lru
from mirror.shares import client_name
from mirror.threads import Threads
from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)
_REMEMBERED: Final = 1000
_MAX_PASSWORD_BYTES: Final = 72  # bcrypt reads no more, and its newer versions refuse more
_MOST_WAITING: Final = 64  # checks per client
_USUAL_COST: Final = 10  # for a file without users
# Cost (4 to 31), 16 bytes of salt, and 23 bytes derived from salt and password.
_HASH: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53,}", re.ASCII)


class HtpasswdError(ValueError):
    """The file is not an htpasswd file with bcrypt hashes; the message names the line."""


def parse_htpasswd(text: str) -> dict[str, bytes]:
    """Return the bcrypt hash of each user.

    Raises:
        HtpasswdError: a line is not ``user:hash``, a comment or blank.
    """
    users = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, hashed = line.strip().partition(":")
        if not (user and colon and _HASH.fullmatch(hashed)):
            raise HtpasswdError(f"line {number} is not a user with a bcrypt hash (htpasswd -B)")
        users[user] = hashed.encode()
    return users


class Htpasswd:
    """The users in a file; ``reload`` reads the file again if it has changed."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            OSError, HtpasswdError: the file cannot be read or parsed.
        """
        self._file = file
        self._users: dict[str, bytes] = {}
        self._cost = _USUAL_COST
        self._read = 0
        # Passwords that matched, each as a hash with a key of this process, never as plain text.
        self._remembered: Lru[tuple[str, bytes, bytes], bool] = Lru(_REMEMBERED)
        self._key = secrets.token_bytes(32)
        # One thread: a bcrypt check costs 50 ms, and password guessing must not load every core.
        self._thread = Threads(1, "bcrypt")
        self._turns = Turns(1, 1, _MOST_WAITING)
        self._trouble = Trouble()
        self._load()

    def reload(self) -> None:
        """Read the file again if it has changed; after an error the previous users stay."""
        try:
            self._load()
        except (OSError, HtpasswdError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            title = "The password file cannot be read; the previous users stay"
            remedy = "correct the file of [access] htpasswd_file"
            if self._trouble.met(Problem(title, reason, remedy)):
                _log.error("%s: %s; the previous users stay", self._file, error)
        else:
            self._trouble.over()

    @property
    def problem(self) -> Problem | None:
        """Why the file was not read again, None if it was."""
        return self._trouble.problem

    def _load(self) -> None:
        changed = self._file.stat().st_mtime_ns
        if changed != self._read:
            self._users = parse_htpasswd(self._file.read_text(encoding="utf-8"))
            self._read = changed
            self._cost = max(map(_cost, self._users.values()), default=_USUAL_COST)
            _log.info("%s: %d users", self._file, len(self._users))

    async def knows(self, user: str, password: str, client: str = "") -> bool:
        """Whether the password is that user's; clients take turns for the bcrypt thread.

        Raises:
            LineFullError: too many checks for this client are waiting.
        """
        hashed = self._users.get(user, b"")
        secret = password.encode()[:_MAX_PASSWORD_BYTES]
        # The file's hash is part of the key, so a changed password is checked anew.
        pair = user, hashed, hashlib.blake2b(secret, key=self._key).digest()
        if self._remembered.get(pair):
            return True
        async with self._turns.turn(client_name(client)):
            if self._remembered.get(pair):  # another connection of the client had the same check
                return True
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._thread, _is_right, secret, hashed, self._cost)
            if right:
                self._remembered.put(pair, True)
            return right

    def close(self) -> None:
        self._thread.shutdown()


def _is_right(secret: bytes, hashed: bytes, highest: int) -> bool:
    """Whether a password matches a hash; the hash of an unknown user is empty.

    A failed check takes as long as a check of the ``highest`` cost, for known and unknown users,
    so that the time does not reveal which users exist.  Work doubles with each step of the cost:
    one check of the hash and one for every cost from its own up add up to the highest.
    """
    try:
        if hashed and bcrypt.checkpw(secret, hashed):
            return True
    except ValueError:  # bcrypt refuses a salt whose last character has unused bits set
        hashed = b""
    for cost in range(_cost(hashed), highest) if hashed else (highest,):
        bcrypt.checkpw(secret, bcrypt.gensalt(cost) + b"." * 31)
    return False


def _cost(hashed: bytes) -> int:
    return int(hashed.split(b"$")[2])
