"""What a request for a manifest or blob tells about a pull.

Times are monotonic seconds, sizes bytes.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from mirror.api.parts import client_version
from mirror.http.exchange import AccessRecord, Exchange
from mirror.oci.manifest import NotAManifest, index_entries, references
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX
from mirror.oci.platform import NOBODY, Platform
from mirror.store.interface import Manifest

#: The kinds of requests that make up a pull.
PULL_KINDS: Final = frozenset({"manifest", "blob"})
MOST_PARTS: Final = 1000  # of one manifest

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_MOST_DETAIL: Final = 512
#: The tag of what is attached to a digest.
_ATTACHED: Final = re.compile(r"sha256-[0-9a-f]{64}(\.\w+)?", re.ASCII)


class Problem(NamedTuple):
    """Why a request got no content: one word for machines, a text for people, a log level."""

    word: str
    text: str
    level: int


class Content(NamedTuple):
    """What a manifest refers to: config and layers with their sizes, or manifests by platform."""

    parts: Mapping[str, int]
    platforms: Mapping[str, str]


NO_CONTENT: Final = Content({}, {})


@dataclass(frozen=True, slots=True, eq=False)
class PullRequest:
    """An answered request for a manifest or blob, possibly repeated; ``size`` is of one body.

    For a manifest, ``digest`` is the one behind the reference.
    """

    user: str
    agent: str
    upstream: str
    repository: str
    reference: str
    is_manifest: bool
    head: bool
    result: str
    size: int
    problem: Problem | None
    digest: str
    content: Content
    trace_id: str
    upstream_seconds: float

    @classmethod
    def of(cls, ending: AccessRecord, content: Content) -> "PullRequest":
        """Return the request of a record; ``content`` is that of its manifest."""
        exchange = ending.exchange
        return cls(
            user=exchange.user,
            agent=client_version(ending.agent),
            upstream=exchange.upstream,
            repository=exchange.repository,
            reference=exchange.reference,
            is_manifest=exchange.kind == "manifest",
            head=ending.method == "HEAD",
            result="" if exchange.outcome is None else exchange.outcome.value,
            size=exchange.sent_bytes,
            problem=_problem(exchange, head=ending.method == "HEAD"),
            digest=exchange.digest,
            content=content,
            trace_id=exchange.trace_id,
            upstream_seconds=exchange.upstream_time.seconds,
        )


class Answered(NamedTuple):
    """A request of ``client`` that was answered so many ``times`` from ``first`` to ``last``."""

    request: PullRequest
    client: str
    times: int
    first: float
    last: float


class RunningRequest(NamedTuple):
    """A request in progress, as far as it keeps a pull from ending."""

    client: str
    upstream: str
    repository: str


def content_of(manifest: Manifest) -> Content:
    """Parse a manifest, as far as pulls need it."""
    try:
        if manifest.media_type not in _INDEXES:
            parts = references(manifest.body)[:MOST_PARTS]
            return Content({str(part.digest): part.size for part in parts}, {})
        entries = index_entries(manifest.body)[:MOST_PARTS]
    except NotAManifest:
        return NO_CONTENT
    named = {
        str(entry.descriptor.digest): ""
        if entry.platform[0] in NOBODY
        else str(Platform.of(*entry.platform))
        for entry in entries
    }
    return Content({}, named)


def _problem(exchange: Exchange, *, head: bool) -> Problem | None:
    status, detail = exchange.status, exchange.detail[:_MOST_DETAIL]
    text = detail or f"the mirror answered {status}"
    missing_blob = status == 404 and exchange.kind == "blob" and not head
    if exchange.failed or missing_blob:
        return Problem("failed", text, logging.WARNING)
    if status in {401, 403}:
        return Problem("refused", text, logging.WARNING)
    if not exchange.whole:
        text = detail or "the client closed the connection"
        return Problem("interrupted", text, logging.INFO)
    if status == 404:
        # Clients, and `warm`, ask so for signatures, which most images do not have.
        usual = _ATTACHED.fullmatch(exchange.reference)
        return Problem("not found", text, logging.DEBUG if usual else logging.INFO)
    # 416: the client has all bytes already.
    return Problem("refused", text, logging.INFO) if status >= 400 and status != 416 else None
