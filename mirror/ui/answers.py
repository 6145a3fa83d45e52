"""Answers with a page: the header fields, and the values that every page needs."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from mirror.http.exchange import EXCHANGE
from mirror.http.token import Tokens
from mirror.ui.templates import Pages

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
FIELDS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Answers:
    """Renders pages; a visitor with a session sees the forms for changes."""

    def __init__(
        self,
        version: str,
        pages: Pages,
        tokens: Tokens,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives Unix seconds."""
        self._version = version
        self._clock = clock
        self._pages = pages
        self._tokens = tokens

    async def page(
        self,
        request: web.BaseRequest,
        template: str,
        values: Mapping[str, object],
        status: int = 200,
    ) -> web.Response:
        """Return a whole page.

        Its forms contain ``proof``, which is empty without a session.
        """
        text = self._pages.render(
            template,
            host=request[EXCHANGE].origin.host or "localhost",
            version=self._version,
            changeable=await self._tokens.enabled(),
            proof=await self._tokens.proof(request),
            **{"now": self._clock(), **values},
        )
        return html(text, status)

    async def message(
        self, request: web.BaseRequest, status: int, title: str, text: str
    ) -> web.Response:
        """Return a page that only says something."""
        values = {"page": "", "title": title, "text": text}
        return await self.page(request, "message.html", values, status)


def html(text: str, status: int = 200) -> web.Response:
    """Return HTML that no cache stores."""
    headers = {**FIELDS, "Cache-Control": "no-store", "Vary": "Accept"}
    return web.Response(text=text, status=status, content_type="text/html", headers=headers)


def moved(place: str) -> web.Response:
    """Send a browser to a page after a form, so that a reload does not repeat the form."""
    headers = {**FIELDS, "Cache-Control": "no-store", "Location": place}
    return web.Response(status=303, headers=headers)
