"""Handlers of the pages about images, and of the forms that change what is cached.

Each form carries a proof that a page of this mirror made it.
"""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote

from aiohttp import web

from mirror.http.exchange import EXCHANGE
from mirror.http.token import COOKIE, SESSION_SECONDS, Tokens, small_body
from mirror.store.interface import IndexUnavailableError
from mirror.ui.charts import spark
from mirror.ui.pages import Pages, moved
from mirror.user_error import UserError

#: As ``api.v1.Reading``: takes the parameters of the query; None: there is no such image.
Reading = Callable[[Mapping[str, str]], Awaitable[Any]]
#: As ``api.v1.Change``: takes the name of an image, and a reason.
Change = Callable[[str, str], Awaitable[Any]]

_MOST_FIELDS: Final = 8
#: The words after a change; the query names one of them.
_DONE: Final = {
    "warm": "The mirror pulls this image now. The status page shows the progress.",
    "keep": "This image is kept: it is never evicted.",
    "release": "This image may be evicted again, unless [[keep]] names it.",
    "drop": "The image was dropped. The next pull asks upstream.",
    "block": "This image is blocked: the mirror refuses it.",
    "unblock": "This block is removed.",
    "release-held": "Clients get the digest of upstream from now on.",
}
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]+", re.ASCII)


class ImagesHandler:
    """Answers the requests for the pages about images."""

    def __init__(self, pages: Pages, images: Reading, image: Reading) -> None:
        """``images`` and ``image`` supply the data of the pages, as JSON."""
        self._pages = pages
        self._images = images
        self._image = image

    async def search(self, request: web.BaseRequest) -> web.Response:
        """Answer with a page of the cached images."""
        query = request.rel_url.query
        try:
            found = await self._images(query)
        except (OSError, IndexUnavailableError):
            return await self._unreadable(request)
        done = _DONE.get(query.get("done", ""), "")
        values = {"page": "images", "found": found, "done": done}
        return await self._pages.page(request, "images.html", values)

    async def image(self, request: web.BaseRequest) -> web.Response:
        """Answer with the images of one repository, and the layers of one of them."""
        query = request.rel_url.query
        try:
            found = await self._image(query)
        except (OSError, IndexUnavailableError):
            return await self._unreadable(request)
        done = _DONE.get(query.get("done", ""), "")
        if found is None:
            text = done or "No public image of this name is cached at the moment."
            return await self._pages.message(request, 404, "Not in the cache", text)
        host = request[EXCHANGE].origin.host
        days = found["pulls_per_day"]
        values = {
            "page": "images",
            "found": found,
            "chosen": found["chosen"],
            "days": days,
            "bars": spark(list(days.values())),
            "direct": host if _HOST.fullmatch(host) else "localhost",
            "done": done,
        }
        return await self._pages.page(request, "image.html", values)

    async def _unreadable(self, request: web.BaseRequest) -> web.Response:
        text = "The status page says why."
        return await self._pages.message(request, 503, "The cache cannot be read", text)


class ChangesHandler:
    """Answers the forms; ``changes`` are keyed by the path of the form."""

    def __init__(self, pages: Pages, tokens: Tokens, changes: Mapping[str, Change]) -> None:
        self._pages = pages
        self._tokens = tokens
        self._changes = changes

    async def login(self, request: web.BaseRequest) -> web.Response:
        return await self._pages.page(request, "login.html", {"page": "", "wrong": False})

    async def sign_in(self, request: web.BaseRequest) -> web.Response:
        fields = await _fields(request)
        cookie = await self._tokens.session(fields.get("token", "").strip())
        if not cookie:
            return await self._pages.page(request, "login.html", {"page": "", "wrong": True}, 403)
        return _with_cookie(request, moved("images"), cookie, SESSION_SECONDS)

    async def sign_out(self, request: web.BaseRequest) -> web.Response:
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
        return await self._pages.message(request, status, "Nothing was changed", text)


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
