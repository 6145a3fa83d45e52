"""Answers with a page: its template, and its header fields.  The only module that imports Jinja.

All values are escaped: names of images and programs come from untrusted clients.
"""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web
from markupsafe import Markup, escape

from mirror import __version__
from mirror.http.exchange import EXCHANGE
from mirror.http.token import Tokens
from mirror.oci.image_name import familiar_reference, familiar_repository, short_digest
from mirror.stats.report import Pull, UpstreamAccount
from mirror.ui import formatting

if TYPE_CHECKING:
    from jinja2 import Environment

_PLACE: Final = files("mirror.ui") / "page"
_TEMPLATES: Final = (
    *("layout.html", "macros.html", "status.html", "live.html", "clients.html"),
    *("images.html", "image.html", "login.html", "message.html"),
)
#: The style sheet, script and icon, and their content types.
ASSETS: Final = {
    "status.css": "text/css",
    "status.js": "text/javascript",
    "status.svg": "image/svg+xml",
}
_GOOD: Final = frozenset({"hit", "revalidated"})
_BAD: Final = frozenset({"error", "denied", "negative"})
_TOO_MANY: Final = "429"
_INLINE: Final = re.compile(r"(.*: )(systemctl .+|mirror .+)")
_REMARK: Final = re.compile(r"\s{3,}(?:\((.*)\)|# (.*))$")
_REGISTRIES: Final = re.compile(r"[\w-]+\.[\w.:-]+(?:, [\w.:-]+)*")
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
_NUMBERS: Final = ("size", "number", "share", "duration", "age", "moment", "date", "clock")


class _Named(Protocol):
    """An object with an upstream and a repository."""

    @property
    def upstream(self) -> str: ...
    @property
    def repository(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Health:
    """The state of an upstream: a short text, and its kind (good, fair, bad or idle)."""

    word: str
    kind: str


@cache
def page_files() -> Mapping[str, bytes]:
    """The templates and assets, read once: an upgrade replaces them while the mirror runs."""
    return {name: (_PLACE / name).read_bytes() for name in (*_TEMPLATES, *ASSETS)}


@cache  # Jinja takes 70 ms to compile the templates, and a reload does not change them
def _environment() -> "Environment":
    # Imported late: it takes 2 MiB, and many mirrors show no page.
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=DictLoader({name: page_files()[name].decode() for name in _TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(formatting, name) for name in _NUMBERS},
        "repository": _repository,
        "reference": familiar_reference,
        "breakable": _breakable,
        "digest": short_digest,
        "health": health,
        "seconds": _seconds,
        "kind": _kind,
        "kept": _kept,
        "steps": steps,
    }
    # Part of the assets' URLs, so that browsers can cache assets and still load a new version.
    bodies = b"".join(page_files()[name] for name in ASSETS)
    environment.globals["generation"] = hashlib.sha256(bodies).hexdigest()[:8]
    return environment


def render(template: str, **values: object) -> str:
    """Return a page, or a part of one, as HTML."""
    return _environment().get_template(template).render(**values)


class Pages:
    """Renders pages; a visitor with a session sees the forms for changes."""

    def __init__(self, tokens: Tokens) -> None:
        page_files()
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
        text = render(
            template,
            host=request[EXCHANGE].origin.host or "localhost",
            version=__version__,
            changeable=await self._tokens.enabled(),
            proof=await self._tokens.proof(request),
            **{"now": time.time(), **values},
        )
        return html(text, status)

    async def message(
        self, request: web.BaseRequest, status: int, title: str, text: str
    ) -> web.Response:
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


def _seconds(text: str) -> float:
    """Return a time of the JSON data (RFC 3339) in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def health(account: UpstreamAccount) -> Health:
    """Return the state of an upstream, from its last answer."""
    if account.up is None:
        return Health("not asked yet", "idle")
    if account.code == _TOO_MANY:
        return Health("rate limited", "fair")
    if account.up:
        return Health("up", "good")
    return Health("no answer" if account.code == "error" else f"fails ({account.code})", "bad")


def _repository(named: _Named) -> str:
    return familiar_repository(named.upstream, named.repository)


def _breakable(name: str) -> Markup:
    """Allow line breaks after the slashes of a name."""
    return escape(name).replace("/", Markup("/<wbr>"))


def _kind(result: str) -> str:
    if result in _GOOD:
        return "good"
    if result in _BAD:
        return "bad"
    return "fair" if result == "stale" else "idle"


def _kept(pull: Pull) -> str:
    """Return the share of a pull's bytes that came from the cache."""
    return formatting.share(1 - pull.missed_bytes / pull.sent_bytes if pull.sent_bytes else None)


@dataclass(frozen=True, slots=True)
class Step:
    """A sentence, then the lines to copy, then remarks about them; each may be empty."""

    text: str
    commands: str
    remark: str = ""


def steps(advice: Sequence[str]) -> list[Step]:
    """Split the advice for a client into sentences and the commands to copy.

    In the advice, a command or a line of configuration stands on an indented line, or after a colon
    at the end of a sentence; a remark may follow it after some spaces.
    """
    found: list[Step] = []
    text: list[str] = []
    commands: list[str] = []
    remarks: list[str] = []

    def end() -> None:
        if text or commands:
            lines = "\n".join(commands)
            found.append(Step(" ".join(text), lines, "; ".join(remarks)))
        for each in (text, commands, remarks):
            each.clear()

    for line in advice:
        inline = _INLINE.fullmatch(line)
        if line.startswith("  ") and not _REGISTRIES.fullmatch(line.strip()):
            command, remark = _split(line[2:])
            commands.append(command)
            remarks += [remark] if remark else []
            continue
        if commands:
            end()
        text.append(inline[1].strip() if inline else line.strip())
        if inline:
            command, remark = _split(inline[2])
            commands.append(command)
            remarks += [remark] if remark else []
    end()
    return found


def _split(line: str) -> tuple[str, str]:
    remark = _REMARK.search(line)
    if remark is None:
        return line.rstrip(), ""
    return line[: remark.start()], remark[1] or remark[2]
