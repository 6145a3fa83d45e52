"""Handlers of the forms: sign in with the token, and change what is cached.

Each form carries a proof that a page of this mirror made it.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote

from aiohttp import web

from mirror.http.exchange import EXCHANGE
from mirror.http.token import COOKIE, SESSION_SECONDS, Tokens, small_body
from mirror.ui.answers import Answers, moved
from mirror.user_error import UserError

#: As ``api.v1.Change``: takes the name of an image, and a reason.
Change = Callable[[str, str], Awaitable[Any]]

_MOST_FIELDS: Final = 8


class ChangesHandler:
    """Answers the forms; ``changes`` are keyed by the path of the form."""

    def __init__(self, answers: Answers, tokens: Tokens, changes: Mapping[str, Change]) -> None:
        self._answers = answers
        self._tokens = tokens
        self._changes = changes

    async def login(self, request: web.BaseRequest) -> web.Response:
        """Answer with the form for the token."""
        return await self._answers.page(request, "login.html", {"page": "", "wrong": False})

    async def sign_in(self, request: web.BaseRequest) -> web.Response:
        """Begin a session if the token is right."""
        fields = await _fields(request)
        cookie = await self._tokens.session(fields.get("token", "").strip())
        if not cookie:
            return await self._answers.page(request, "login.html", {"page": "", "wrong": True}, 403)
        return _with_cookie(request, moved("images"), cookie, SESSION_SECONDS)

    async def sign_out(self, request: web.BaseRequest) -> web.Response:
        """End the session in this browser."""
        return _with_cookie(request, moved("./"), "", 0)

    async def change(self, request: web.BaseRequest) -> web.Response:
        """Make a change, and go back to the page of the image."""
        fields = await _fields(request)
        proof, name = await self._tokens.proof(request), request.path.removeprefix("/")
        given = fields.get("proof", "").encode(errors="replace")
        if not proof or not hmac.compare_digest(given, proof.encode()):
            return await self._refuse(request, 403, "Sign in again, then repeat this.")
        image = fields.get("image", "").strip()
        try:
            await self._changes[name](image, fields.get("reason", "").strip())
        except UserError as error:
            return await self._refuse(request, 409, str(error))
        if name in {"warm", "drop"}:
            return moved(f"images?done={name}")
        return moved(f"image?name={quote(image, safe='')}&done={name}")

    async def _refuse(self, request: web.BaseRequest, status: int, text: str) -> web.Response:
        return await self._answers.message(request, status, "Nothing was changed", text)


async def _fields(request: web.BaseRequest) -> dict[str, str]:
    """Return the fields of a form; of several with one name, the first."""
    text = (await small_body(request)).decode(errors="replace")
    try:
        parsed = parse_qs(text, max_num_fields=_MOST_FIELDS)
    except ValueError:
        return {}
    return {name: values[0] for name, values in parsed.items()}


def _with_cookie(
    request: web.BaseRequest, response: web.Response, cookie: str, seconds: int
) -> web.Response:
    response.set_cookie(
        *(COOKIE, cookie),
        max_age=seconds,
        httponly=True,
        samesite="Strict",
        secure=request[EXCHANGE].origin.scheme == "https",
    )
    return response
