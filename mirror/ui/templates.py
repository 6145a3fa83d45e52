"""Render the templates.  The only module that imports Jinja.

All values are escaped: names of images and programs come from untrusted clients.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Protocol

from markupsafe import Markup, escape

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
_TYPES: Final = {
    "status.css": "text/css",
    "status.js": "text/javascript",
    "status.svg": "image/svg+xml",
}
_GOOD: Final = frozenset({"hit", "revalidated"})
_BAD: Final = frozenset({"error", "denied", "negative"})
_TOO_MANY: Final = "429"


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


@dataclass(frozen=True, slots=True)
class Asset:
    """The body and the content type of a file that the pages need."""

    body: bytes
    content_type: str


class Pages:
    """The templates of all pages and their assets, read once."""

    def __init__(self) -> None:
        self._sources = {name: (_PLACE / name).read_text("utf-8") for name in _TEMPLATES}
        self.assets = {
            name: Asset((_PLACE / name).read_bytes(), content_type)
            for name, content_type in _TYPES.items()
        }
        bodies = b"".join(asset.body for asset in self.assets.values())
        # Part of the assets' URLs, so that browsers can cache assets and still load a new version.
        self._generation = hashlib.sha256(bodies).hexdigest()[:8]

    @cached_property
    def _environment(self) -> "Environment":
        # Imported late: it takes 2 MiB, and many mirrors show no page.
        from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415

        environment = Environment(
            loader=DictLoader(self._sources),
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
        }
        return environment

    def render(self, template: str, **values: object) -> str:
        """Return a page as HTML."""
        return self._environment.get_template(template).render(
            generation=self._generation, **values
        )


_NUMBERS: Final = ("size", "number", "share", "duration", "age", "moment", "date", "clock")


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
