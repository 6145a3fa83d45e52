"""The login of a client at a registry."""

import base64
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
