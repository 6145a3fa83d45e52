"""Tracing spans, independent of the library that collects them (see :mod:`mirror.tracing`).

``http.server`` enters the span of a client's request.  Work for the request (a single flight, a
fill, a request to upstream) begins a child of the current span, also in a task of its own, since a
task inherits the context that creates it.  Without a collector, ``NOTHING`` is the current span,
and all its children are ``NOTHING`` too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

Attribute = str | int | bool


class Span(Protocol):
    """A span with a name and attributes, which must not contain secrets.

    ``trace_id`` is the trace at the collector, empty if the span is not collected.
    """

    @property
    def trace_id(self) -> str: ...

    def child(self, name: str, *, outgoing: bool = False) -> "Span":
        """Begin a child span; ``outgoing``: a request to another server."""

    def rename(self, name: str) -> None:
        """Change the name of the span."""

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes."""

    def link(self, other: "Span") -> None:
        """Link a related span that is not the parent."""

    def fail(self, error_type: str) -> None:
        """Mark the span as failed; ``error_type`` is the name of the error's class."""

    def end(self) -> None:
        """End the span."""

    def headers(self) -> Mapping[str, str]:
        """The header fields that pass the span to the next server (W3C Trace Context)."""


class Tracer(Protocol):
    """Creates the spans of requests."""

    def request(self, name: str, traceparent: str) -> Span:
        """Begin the span of a client's request, as a child of ``traceparent`` unless empty."""


class _Nothing:
    """The span that is not collected."""

    trace_id = ""

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
    """The span of the current context."""
    return _CURRENT.get()


@contextmanager
def entered(span: Span) -> Iterator[Span]:
    """Make a span current, and end it afterwards; an exception marks it as failed."""
    before = _CURRENT.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        _CURRENT.reset(before)
        span.end()
