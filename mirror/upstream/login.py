"""The login of a client at a registry."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass


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


class Login:
    """The login of one client, or of an anonymous one.

    Until a request has succeeded, requests are sent one at a time: if the server refuses or limits
    the first one, the others need not be sent.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials
        self._alone = asyncio.Lock()
        self._proven = False

    @property
    def given(self) -> bool:
        """Whether there are credentials."""
        return self._credentials is not None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Credentials | None]:
        """Yield the credentials for one request."""
        async with AsyncExitStack() as turn:
            if not self._proven:
                await turn.enter_async_context(self._alone)
            if self._proven:  # perhaps by the request before this one
                await turn.aclose()
            try:
                yield self._credentials
            except BaseException:
                self._proven = False
                raise

    def accept(self) -> None:
        """Note that the server has accepted the login."""
        self._proven = True
