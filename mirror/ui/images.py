"""Handlers of the pages about images: the search, and one repository with its layers."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from mirror.http.exchange import EXCHANGE
from mirror.store.interface import IndexUnavailableError
from mirror.ui.answers import Answers
from mirror.ui.charts import spark

#: As ``api.v1.Reading``: takes the parameters of the query; None: there is no such image.
Reading = Callable[[Mapping[str, str]], Awaitable[Any]]

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

    def __init__(self, answers: Answers, images: Reading, image: Reading) -> None:
        """``images`` and ``image`` supply the data of the pages, as JSON."""
        self._answers = answers
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
        return await self._answers.page(request, "images.html", values)

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
            return await self._answers.message(request, 404, "Not in the cache", text)
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
        return await self._answers.page(request, "image.html", values)

    async def _unreadable(self, request: web.BaseRequest) -> web.Response:
        text = "The status page says why."
        return await self._answers.message(request, 503, "The cache cannot be read", text)
