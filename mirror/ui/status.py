"""Handlers of the status pages: the mirror's state, and how to configure clients.

The figures come from the ledger; ``ui.pages`` renders them.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from aiohttp import web

from mirror import __version__
from mirror.clients import Snippet
from mirror.http.exchange import EXCHANGE
from mirror.http.forwarded import Origin
from mirror.stats.report import (
    HOURS,
    Figures,
    Filling,
    History,
    Image,
    Replica,
    StatsReport,
    UpstreamAccount,
    last_days,
)
from mirror.store.local.eviction import Usage
from mirror.trouble import merged
from mirror.ui import charts, formatting
from mirror.ui.pages import ASSETS, FIELDS, Pages, health, html, page_files, render

_RECENT: Final = 20
_LISTED: Final = 8
# Images to look up for each of the lists "largest" and "longest unused"; some have been evicted.
_LOOKED_AT: Final = 50
_LIVE_SECONDS: Final = 0.5  # rendering takes 4 ms, and every open tab requests the page
_HISTORY_SECONDS: Final = 20.0  # the charts change slowly
_GROUPS: Final = 50  # images that are being filled
_POLICIES: Final = 20  # held tags, and blocks
#: Hosts that are safe in a configuration file; the Host field comes from the client.
_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


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
    ``policies`` returns the held tags and the blocks, as JSON.  ``replicas`` returns those of a
    cluster.
    """

    state: Callable[[int, int], Awaitable[StatsReport]]
    usage: Callable[[], Awaitable[Usage | None]]
    held: Callable[[Sequence[Image]], Awaitable[Sequence[Image]]]
    history: Callable[[], Awaitable[History]]
    policies: Callable[[], Awaitable[Mapping[str, Sequence[object]]]]
    replicas: Callable[[], Awaitable[Sequence[Replica]]]


@dataclass(frozen=True, slots=True)
class ImageFill:
    """The running downloads of one repository together; ``total`` is None while one is unknown."""

    upstream: str
    repository: str
    blobs: int
    length: int
    total: int | None
    rate: float
    waiting: int


def grouped(fills: Sequence[Filling]) -> list[ImageFill]:
    """Combine the downloads of each repository; a client waits for several of its layers."""

    def place(fill: Filling) -> tuple[str, str]:
        return fill.upstream, fill.repository

    groups = []
    for names, each in groupby(sorted(fills, key=place), key=place):
        blobs = list(each)
        totals = [fill.total for fill in blobs if fill.total is not None]
        groups.append(
            ImageFill(
                *names,
                len(blobs),
                sum(fill.length for fill in blobs),
                sum(totals) if len(totals) == len(blobs) else None,
                sum(fill.rate for fill in blobs),
                max(fill.waiting for fill in blobs),
            )
        )
    return groups


class StatusHandler:
    """Answers the requests for the status pages."""

    def __init__(
        self,
        pages: Pages,
        upstreams: Sequence[str],
        default: str,
        source: Source,
        guides: Sequence[Guide],
    ) -> None:
        """Show ``upstreams`` in their order."""
        self._upstreams = tuple(upstreams)
        self._default = default
        self._source = source
        self._guides = {guide.key: guide for guide in guides}
        self._pages = pages
        self._history = History()
        self._history_until = -math.inf
        self._making = asyncio.Lock()
        self._live = ""
        self._live_until = -math.inf

    async def page(self, request: web.BaseRequest) -> web.Response:
        """Answer with the status as HTML for browsers, as plain text for other clients."""
        if not _wants_html(request):
            return await self._text(request)
        values = {"page": "status", **await self._said()}
        return await self._pages.page(request, "status.html", values)

    async def live(self, request: web.BaseRequest) -> web.Response:
        """Answer with the changing part of the page, for its script.

        The part is rendered at most every half second, however many tabs are open.
        """
        async with self._making:
            if time.monotonic() >= self._live_until:
                self._live = render("live.html", **await self._said())
                self._live_until = time.monotonic() + _LIVE_SECONDS
        return html(self._live)

    async def clients(self, request: web.BaseRequest) -> web.Response:
        """Answer with instructions for clients; they use the address of this request."""
        url = _url_of(request[EXCHANGE].origin)
        asked = request.rel_url.query.get("client", "")
        chosen = self._guides.get(asked) or next(iter(self._guides.values()))
        snippet = chosen.snippet(url)
        values = {
            "page": "clients",
            "url": url,
            "secure": url.startswith("https:"),
            "guides": self._guides.values(),
            "chosen": chosen,
            "snippet": snippet,
        }
        return await self._pages.page(request, "clients.html", values)

    async def asset(self, request: web.BaseRequest) -> web.Response:
        """Answer with a style sheet, script or icon; a URL with a version may be cached."""
        name = request.path.rpartition("/")[2]
        kept = "max-age=604800" if request.rel_url.raw_query_string else "no-cache"
        headers = {**FIELDS, "Cache-Control": kept}
        return web.Response(
            body=page_files()[name], content_type=ASSETS[name], charset="utf-8", headers=headers
        )

    async def _said(self) -> Mapping[str, object]:
        said = await self._source.state(_RECENT, _LOOKED_AT)
        largest = await self._source.held(said.largest)
        unused = await self._source.held(said.longest_unused)
        accounts = self._accounts(said)
        shown = [account for account in accounts if account.code] or accounts[:1]
        now = time.time()
        history, days = await self._periods(), last_days(now)
        fills = grouped(said.fills)
        replicas = await self._source.replicas()
        unanswered = (each.problem for each in replicas if each.problem is not None)
        return {
            "said": replace(
                said,
                problems=tuple(merged((*said.problems, *unanswered))),
                most_pulled=said.most_pulled[:_LISTED],
                largest=tuple(largest[:_LISTED]),
                longest_unused=tuple(unused[:_LISTED]),
            ),
            "total": said.total,
            "today": said.today,
            "replicas": replicas,
            "cluster": sum((each.total for each in replicas), Figures()),
            "accounts": shown,
            "unasked": [account.name for account in accounts if account not in shown],
            "default": self._default,
            "usage": await self._source.usage(),
            "policies": await self._source.policies(),
            "most_policies": _POLICIES,
            "fills": fills[:_GROUPS],
            "more_fills": max(len(fills) - _GROUPS, 0),
            "charts": [charts.hourly(history, now, HOURS), charts.daily(history, days)],
            "sparks": charts.sparks(history, days),
            "spark_width": charts.WIDTH * len(days),
            "now": now,
        }

    async def _periods(self) -> History:
        if time.monotonic() >= self._history_until:
            self._history_until = time.monotonic() + _HISTORY_SECONDS
            self._history = await self._source.history()
        return self._history

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
            f"mirror {__version__}: a pull-through cache for container images",
            "",
            *(f"{each.title}: {each.cause}; {each.remedy}" for each in said.problems),
            *[""] * bool(said.problems),
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
