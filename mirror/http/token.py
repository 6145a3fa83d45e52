"""The token that allows changes by HTTP, and the sessions of visitors who have it.

``mirror token`` makes a token and stores its hash in the cache directory; without that file no
change is possible by HTTP.  Scripts send the token in a header field; the pages exchange it for a
cookie, which is signed with the hash, so that all processes know it and a new token ends it.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from mirror.oci.errors import ErrorCode, OciError

#: Browsers do not send this field to another site without asking that site first.
TOKEN_FIELD: Final = "X-Mirror-Token"  # noqa: S105  # the name of a field
COOKIE: Final = "mirror_session"
SESSION_SECONDS: Final = 12 * 3600
_TOKEN_BYTES: Final = 32
_MOST_BYTES: Final = 8 * 1024
_BODY_SECONDS: Final = 10.0


def create_token(file: Path) -> str:
    """Make a new token; a former one, and its sessions, are not valid any more.

    Raises:
        OSError: the file cannot be written.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(_hash(token))
    fresh.replace(file)
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


class Tokens:
    """Checks tokens and sessions against the hash in a file."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives Unix seconds."""
        self._file = file
        self._clock = clock

    async def enabled(self) -> bool:
        return bool(await self._key())

    async def allows(self, request: web.BaseRequest) -> bool:
        """Return whether a request carries the token in its field."""
        given, key = request.headers.get(TOKEN_FIELD, ""), await self._key()
        return bool(given and key) and hmac.compare_digest(_hash(given), key)

    async def session(self, token: str) -> str:
        """Return the cookie of a new session; empty if the token is wrong."""
        key = await self._key()
        if not key or not hmac.compare_digest(_hash(token), key):
            return ""
        ends = f"{self._clock() + SESSION_SECONDS:.0f}"
        return f"{ends}.{_signed(key, ends)}"

    async def proof(self, request: web.BaseRequest) -> str:
        """Return what forms of this session must contain; empty without a valid session.

        Another site can make a browser send the cookie, and cannot read this value.
        """
        cookie = request.cookies.get(COOKIE, "")
        ends, _, signature = cookie.partition(".")
        key = await self._key() if cookie else ""
        if not (key and ends.isascii() and ends.isdigit() and float(ends) > self._clock()):
            return ""
        if not hmac.compare_digest(signature.encode(errors="replace"), _signed(key, ends).encode()):
            return ""
        return _signed(key, f"form {cookie}")

    async def _key(self) -> str:
        try:
            return await asyncio.to_thread(self._file.read_text, "ascii")
        except (OSError, ValueError):
            return ""


def _signed(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), "sha256").hexdigest()


async def small_body(request: web.BaseRequest, most: int = _MOST_BYTES) -> bytes:
    """Return the body of a form or command; it has at most ``most`` bytes.

    Raises:
        OciError: it is too large (413) or too slow (408).
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    text = f"a request for a change has at most {most} bytes"
                    raise OciError(ErrorCode.SIZE_INVALID, text, status=413)
    except TimeoutError as error:
        text = f"the body did not arrive within {_BODY_SECONDS:.0f} s"
        raise OciError(ErrorCode.UNKNOWN, text, status=408) from error
    return bytes(body)
