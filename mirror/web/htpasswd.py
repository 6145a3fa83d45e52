"""Who may use the mirror, by an htpasswd file with bcrypt hashes (``htpasswd -B``)."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import bcrypt

_log = logging.getLogger(__name__)
_REMEMBERED: Final = 1000
_NOBODY: Final = bcrypt.hashpw(b"", bcrypt.gensalt(rounds=10))  # so that names cannot be guessed
_MAX_PASSWORD_BYTES: Final = 72  # all that bcrypt looks at, and newer versions refuse more


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
        if not (user and colon and hashed.startswith(("$2a$", "$2b$", "$2y$"))):
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
        self._read = 0
        self._remembered: OrderedDict[bytes, None] = OrderedDict()
        # One thread: a bcrypt costs 50 ms, and guessing must not take the machine.
        self._thread = ThreadPoolExecutor(1, "bcrypt")
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
            _log.info("%s: %d users", self._file, len(self._users))

    async def knows(self, user: str, password: str) -> bool:
        """Whether the password is that user's."""
        hashed = self._users.get(user, _NOBODY)
        secret = password.encode()[:_MAX_PASSWORD_BYTES]
        # Never the password itself; with the hash in it, a changed password is a new question.
        name = hashlib.sha256(b"\0".join((user.encode(), hashed, secret))).digest()
        if name in self._remembered:
            self._remembered.move_to_end(name)
            return True
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(self._thread, bcrypt.checkpw, secret, hashed)
        if not right or user not in self._users:
            return False
        self._remembered[name] = None
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return True

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
