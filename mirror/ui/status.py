"""Handlers of the status pages: the mirror's state, and how to configure clients.

The figures come from the ledger; ``ui.templates`` renders them.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from aiohttp import web

from mirror.http.exchange import EXCHANGE
from mirror.http.forwarded import Origin
from mirror.stats.report import Figures, Image, StatsReport, UpstreamAccount
from mirror.store.local.eviction import Usage
from mirror.ui import formatting
from mirror.ui.templates import Pages, health

_RECENT: Final = 20
_LISTED: Final = 8
# Images to look up for each of the lists "largest" and "longest unused"; some have been evicted.
_LOOKED_AT: Final = 50
_LIVE_SECONDS: Final = 0.5  # rendering takes 4 ms, and every open tab requests the page
_DAYS: Final = 30
_BAR: Final = 30
#: Hosts that are safe in a configuration file; the Host field comes from the client.
_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_FIELDS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def text(self) -> str: ...


class Snippet(Protocol):
    """Configuration files for a client, and advice."""

    @property
    def files(self) -> Sequence[_File]:
        """The files, each with its path and text."""

    @property
    def advice(self) -> Sequence[str]:
        """Lines of text: what to do with the files."""


@dataclass(frozen=True, slots=True)
class Guide:
    """How to configure one kind of client for a mirror.

    ``command`` is the argument of ``mirror client``; ``covers`` says for which registries the
    configuration works; ``snippet`` takes the mirror's URL.  ``by_proxy``: the client uses the
    mirror as its proxy, on another port and always over plain http.
    """

    key: str
    name: str
    command: str
    covers: str
    snippet: Callable[[str], Snippet]
    by_proxy: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """The functions that supply the data of the pages.

    ``state`` takes the numbers of recent pulls and of images to return.  ``usage`` returns None
    while the index cannot be read.  ``held`` returns those of its images that are in the cache.
    ``trouble`` says why the mirror cannot store content; empty if it can.
    """

    state: Callable[[int, int], Awaitable[StatsReport]]
    usage: Callable[[], Awaitable[Usage | None]]
    held: Callable[[Sequence[Image]], Awaitable[Sequence[Image]]]
    trouble: Callable[[], str]


@dataclass(frozen=True, slots=True)
class _Bar:
    day: str
    saved: int
    height: int


class StatusHandler:
    """Answers the requests for the status pages."""

    def __init__(
        self,
        version: str,
        upstreams: Sequence[str],
        default: str,
        source: Source,
        guides: Sequence[Guide],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show ``upstreams`` in their order; ``clock`` gives Unix seconds."""
        self._version = version
        self._upstreams = tuple(upstreams)
        self._default = default
        self._source = source
        self._guides = {guide.key: guide for guide in guides}
        self._clock = clock
        self._monotonic = monotonic
        self._pages = Pages()
        self._making = asyncio.Lock()
        self._live = ""
        self._live_until = -math.inf

    async def page(self, request: web.BaseRequest) -> web.Response:
        """Answer with the status as HTML for browsers, as plain text for other clients."""
        if not _wants_html(request):
            return await self._text(request)
        return self._html(request, "status.html", page="status", **await self._said())

    async def live(self, request: web.BaseRequest) -> web.Response:
        """Answer with the changing part of the page, for its script.

        The part is rendered at most every half second, however many tabs are open.
        """
        async with self._making:
            if self._monotonic() >= self._live_until:
                self._live = self._pages.render("live.html", **await self._said())
                self._live_until = self._monotonic() + _LIVE_SECONDS
        return _sent_html(self._live)

    async def clients(self, request: web.BaseRequest) -> web.Response:
        """Answer with instructions for clients; they use the address of this request."""
        url = _url_of(request[EXCHANGE].origin)
        asked = request.rel_url.query.get("client", "")
        chosen = self._guides.get(asked) or next(iter(self._guides.values()))
        return self._html(
            request,
            "clients.html",
            page="clients",
            url=url,
            secure=url.startswith("https:"),
            guides=self._guides.values(),
            chosen=chosen,
            snippet=chosen.snippet(url),
        )

    async def asset(self, request: web.BaseRequest) -> web.Response:
        """Answer with a style sheet, script or icon; a URL with a version may be cached."""
        asset = self._pages.assets[request.path.rpartition("/")[2]]
        kept = "max-age=604800" if request.rel_url.raw_query_string else "no-cache"
        headers = {**_FIELDS, "Cache-Control": kept}
        return web.Response(
            body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers
        )

    @property
    def assets(self) -> Sequence[str]:
        """Names of the files that the pages need."""
        return tuple(self._pages.assets)

    def _html(self, request: web.BaseRequest, template: str, **values: object) -> web.Response:
        host = request[EXCHANGE].origin.host or "localhost"
        text = self._pages.render(template, host=host, version=self._version, **values)
        return _sent_html(text)

    async def _said(self) -> Mapping[str, object]:
        said = await self._source.state(_RECENT, _LOOKED_AT)
        largest = await self._source.held(said.largest)
        unused = await self._source.held(said.longest_unused)
        bars = _bars(said.days[-_DAYS:])
        accounts = self._accounts(said)
        shown = [account for account in accounts if account.code] or accounts[:1]
        return {
            "said": replace(
                said,
                most_pulled=said.most_pulled[:_LISTED],
                largest=tuple(largest[:_LISTED]),
                longest_unused=tuple(unused[:_LISTED]),
            ),
            "total": said.total,
            "today": said.today,
            "accounts": shown,
            "unasked": [account.name for account in accounts if account not in shown],
            "default": self._default,
            "usage": await self._source.usage(),
            "condition": self._condition(),
            "bars": bars,
            "most_saved": max((bar.saved for bar in bars), default=0),
            "now": self._clock(),
        }

    def _condition(self) -> str:
        trouble = self._source.trouble()
        return f"Nothing is stored at the moment: {trouble}. Pulls pass through" * bool(trouble)

    def _accounts(self, said: StatsReport) -> list[UpstreamAccount]:
        """Return one account for each configured upstream, empty if it was never asked."""
        known = {account.name: account for account in said.upstreams}
        blank = Figures()
        return [known.get(name) or UpstreamAccount(name, blank, blank) for name in self._upstreams]

    async def _text(self, request: web.BaseRequest) -> web.Response:
        said = await self._source.state(0, 0)
        accounts = self._accounts(said)
        width = max(len(account.name) for account in accounts)
        url = _url_of(request[EXCHANGE].origin)
        lines = [
            f"mirror {self._version}: a pull-through cache for container images",
            "",
            "Serves",
            *(f"  {each.name:{width}}  {health(each).word}" for each in accounts),
            "",
            (
                f"Hit rate {formatting.share(said.total.hit_rate)}, saved "
                f"{formatting.size(said.today.saved_bytes)} today, "
                f"{formatting.size(said.total.saved_bytes)} in all"
            ),
            "",
            f"Docker, {self._default} (/etc/docker/daemon.json, then systemctl reload docker):",
            f'  {{"registry-mirrors": ["{url}"]}}',
            "",
            f"Other clients: mirror client --help, or {url}/clients in a browser",
            f"Figures: {url}/metrics",
            "",
        ]
        text = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        return web.Response(text=text, headers={"Vary": "Accept", "Cache-Control": "no-store"})


def _sent_html(text: str) -> web.Response:
    headers = {**_FIELDS, "Cache-Control": "no-store", "Vary": "Accept"}
    return web.Response(text=text, content_type="text/html", headers=headers)


def _wants_html(request: web.BaseRequest) -> bool:
    """Whether the client is a browser: only browsers name HTML in Accept (RFC 9110, 12.5.1)."""
    ranges = ",".join(request.headers.getall("Accept", [])).lower().split(",")
    named = [each.partition(";") for each in ranges]
    return any(
        kind.strip() == "text/html" and parameters.replace(" ", "") not in {"q=0", "q=0.0"}
        for kind, _, parameters in named
    )


def _url_of(origin: Origin) -> str:
    """The mirror's URL as the client sees it; ``localhost`` replaces an unsafe Host."""
    host = origin.host if _HOST.fullmatch(origin.host) else "localhost"
    return f"{origin.scheme}://{host}"


def _bars(days: Sequence[tuple[str, Figures]]) -> list[_Bar]:
    """The bytes saved on each day, scaled for a bar chart; empty without enough data."""
    most = max((figures.saved_bytes for _, figures in days), default=0)
    if len(days) <= 1 or most <= 0:
        return []
    return [
        _Bar(day, figures.saved_bytes, max(round(_BAR * figures.saved_bytes / most), 1))
        for day, figures in days
    ]
