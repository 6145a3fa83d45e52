"""Who logs in to a registry: the mirror, or a client; and whether the registry has refused it.

Only the upstream receives the credentials of a client.  Cache keys, logs and errors contain the
client's identity instead: a keyed hash that reveals nothing about the secret.

A registry may lock an account after some wrong passwords, and every pull would send one.
"""

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.challenge import parse_basic
from mirror.trouble import Problem, Trouble
from mirror.ttl_cache import SharedValues
from mirror.upstream.errors import LoginRefusedError, RefusedError

_log = logging.getLogger(__name__)
#: How long a refused password is not sent again, in seconds.
_REFUSED_SECONDS: Final = 60.0
_IDENTITY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password or access token; the repr hides both."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(********)"

    def basic(self) -> str:
        """The Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


@dataclass(frozen=True, slots=True)
class Principal:
    """One client; ``authorization`` is its Authorization field, empty if it sent none."""

    identity: str
    authorization: str = field(default="", repr=False, compare=False)

    def credentials(self) -> Credentials | None:
        """User and password; None if the client did not use the Basic scheme."""
        pair = parse_basic(self.authorization)
        return None if pair is None else Credentials(*pair)


#: A client without credentials; it gets the answer that upstream gives to anonymous clients.
NOBODY: Final = Principal("nobody")


class Principals:
    """Makes principals from Authorization fields."""

    def __init__(self, key: bytes) -> None:
        """``key`` is the secret key of the hash that identifies a client."""
        self._key = key

    def principal(self, authorization: str) -> Principal:
        """Return the principal that sent this Authorization field."""
        data = authorization.encode(errors="surrogateescape")
        hashed = hashlib.blake2b(data, digest_size=_IDENTITY_BYTES, key=self._key)
        return Principal(hashed.hexdigest(), authorization)


@dataclass(frozen=True, slots=True)
class SharedLogin:
    """What several mirrors with the same login at an upstream tell each other."""

    tokens: SharedValues[str]
    limits: SharedValues[str]


class Login:
    """The login of one client, or of an anonymous one.

    Until a request has succeeded, requests are sent one at a time: if the server refuses or limits
    the first one, the others need not be sent.
    """

    own = False
    problem: Problem | None = None
    """The refusal of the mirror's own login, None if it is accepted."""

    def __init__(self, credentials: Credentials | None = None, advice: str = "") -> None:
        """``advice``: how to log in, for messages that a login would help."""
        self.advice = advice
        self._credentials = credentials
        self._alone = asyncio.Lock()
        self.proven = False

    @property
    def given(self) -> bool:
        """Whether there are credentials."""
        return self._credentials is not None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Credentials | None]:
        """Yield the credentials for one request.

        Raises:
            LoginRefusedError: the registry has refused them a short time ago.
        """
        async with AsyncExitStack() as turn:
            if not self.proven:
                await turn.enter_async_context(self._alone)
            if self.proven:  # perhaps by the request before this one
                await turn.aclose()
            else:
                await self._check()
            try:
                yield self._credentials
            except RefusedError:
                raise
            except BaseException:
                self.proven = False
                raise

    def accept(self) -> None:
        """Note that the server has accepted the login."""
        self.proven = True

    async def refresh(self, refused: Credentials) -> bool:
        """Return whether there are other credentials than the refused ones to try."""
        return self._credentials != refused

    def refuse(self, refused: Credentials) -> None:
        """Note that the server has refused the credentials; only the client can correct them.

        Raises:
            LoginRefusedError: they are the mirror's own.
        """

    async def _check(self) -> None:
        """Raise if the credentials must not be sent now."""


class OwnLogin(Login):
    """The mirror's own login, as configured."""

    own = True

    def __init__(
        self,
        upstream: str,
        username: str,
        read: Callable[[], str],
        keys: str,
        told: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use the password that ``read`` returns; ``keys`` are its keys in the configuration.

        ``told`` is called with True when the registry refuses the login, and with False when it
        accepts the login again.

        Raises:
            OSError: the password file cannot be read.
        """
        super().__init__(Credentials(username, read()))
        self._upstream = upstream
        self._username = username
        self._read = read
        self._keys = keys
        self._told = told
        self._clock = clock
        self._refused: Credentials | None = None
        self._again_at = 0.0
        self._trouble = Trouble()

    @property
    def problem(self) -> Problem | None:  # type: ignore[override]
        return self._trouble.problem

    def accept(self) -> None:
        super().accept()
        self._trouble.over()
        if self._refused is not None:
            self._refused = None
            self._told(False)

    async def refresh(self, refused: Credentials) -> bool:
        """Read the password file again; see :meth:`Login.refresh`."""
        try:
            password = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as error:  # without its text: it may hold the password
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            _log.warning("%s: %s cannot be read (%s)", self._upstream, self._keys, reason)
        else:
            self._credentials = Credentials(self._username, password)
        return self._credentials != refused

    def refuse(self, refused: Credentials) -> None:
        """See :meth:`Login.refuse`; the log has one line per password."""
        if self._refused != refused:
            _log.warning(
                "%s: refuses the mirror's login: correct %s (tried again when it changes, and "
                "every %d s); until then only public images are pulled, as an anonymous client",
                *(self._upstream, self._keys, _REFUSED_SECONDS),
            )
        cause = "the registry does not accept this user name and password"
        remedy = f"correct {self._keys}"
        self._trouble.met(Problem(f"{self._upstream} refuses the mirror's login", cause, remedy))
        self._refused = refused
        self._told(True)
        self._again_at = self._clock() + _REFUSED_SECONDS
        self.proven = False
        raise self._error()

    async def _check(self) -> None:
        refused = self._refused
        if refused is None or self._clock() >= self._again_at:
            return
        if not await self.refresh(refused):
            raise self._error()

    def _error(self) -> LoginRefusedError:
        text = f"refuses the mirror's login; its operator must correct {self._keys}"
        return LoginRefusedError(self._upstream, text)
