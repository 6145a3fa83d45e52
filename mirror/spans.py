"""What is done on whose behalf, as a tree of spans.  Knows nobody who collects them.

The span of a request is entered by ``web``; what is begun on its way (a flight, a fill, a request
to upstream) makes itself a child of whatever is current, also in a task of its own, since tasks
inherit the context they are made in.  Where nobody collects, ``NOTHING`` is current, and a child
of nothing is nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

Attribute = str | int | bool


class Span(Protocol):
    """A stretch of time with a name and attributes; never with a secret in them."""

    def child(self, name: str, *, outgoing: bool = False) -> "Span":
        """Begin a part of it; ``outgoing``: a request to another server."""

    def rename(self, name: str) -> None:
        """Call it otherwise."""

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        """Say more of it."""

    def link(self, other: "Span") -> None:
        """It has to do with another one that it is no part of."""

    def fail(self, error_type: str) -> None:
        """It came to no good end."""

    def end(self) -> None:
        """It is over."""

    def headers(self) -> Mapping[str, str]:
        """The header fields that tell the next server of it (W3C Trace Context)."""


class Tracer(Protocol):
    """Who collects spans."""

    def request(self, name: str, traceparent: str) -> Span:
        """Begin a request of a client, which may be part of something larger."""


class _Nothing:
    """The span of what nobody collects."""

    def child(self, name: str, *, outgoing: bool = False) -> Span:  # noqa: ARG002
        return self

    def rename(self, name: str) -> None:
        pass

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        pass

    def link(self, other: Span) -> None:
        pass

    def fail(self, error_type: str) -> None:
        pass

    def end(self) -> None:
        pass

    def headers(self) -> Mapping[str, str]:
        return {}


NOTHING: Final[Span] = _Nothing()
_CURRENT: Final[ContextVar[Span]] = ContextVar("span", default=NOTHING)


def current() -> Span:
    """The span that whoever asks is part of."""
    return _CURRENT.get()


@contextmanager
def entered(span: Span) -> Iterator[Span]:
    """Make a span current until it is over."""
    before = _CURRENT.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        _CURRENT.reset(before)
        span.end()
