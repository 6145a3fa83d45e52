"""Opens and closes the collector of spans."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from yarl import URL

from mirror import __version__
from mirror.config.model import Config
from mirror.server.upstreams import from_environment
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.tracing import Tracing


def check_tracing(config: Config) -> None:
    """Check that spans can be collected, if configured.

    Raises:
        UserError: OpenTelemetry is not installed.
    """
    if config.tracing.endpoint:
        try:
            import mirror.tracing  # noqa: F401, PLC0415  # an extra that few install
        except ImportError as error:
            raise UserError(
                "[tracing] endpoint is set, but OpenTelemetry is not installed: "
                "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, "
                "or leave endpoint empty"
            ) from error


@asynccontextmanager
async def opened_tracing(config: Config) -> AsyncIterator["Tracing | None"]:
    """Collect spans while the context is open; None if not configured.

    Raises:
        UserError: OpenTelemetry is not installed, or its thread cannot start.
    """
    check_tracing(config)
    if not config.tracing.endpoint:
        yield None
        return
    from mirror.tracing import Tracing  # noqa: PLC0415  # as above

    wanted = config.tracing
    address = URL(wanted.address())
    # Not [fetch] proxy, which is for upstreams.
    proxy = from_environment().lookup(address.scheme, address.raw_host or "", address.port or 0)
    through = "" if proxy is None else str(proxy.url)
    try:
        tracing = Tracing(str(address), wanted.sample, wanted.service, __version__, through)
    except RuntimeError as error:  # the system refused the thread that exports spans
        raise UserError(
            f"[tracing]: {error}; raise the limit on threads (--pids-limit, TasksMax, ulimit -u)"
        ) from error
    try:
        yield tracing
    finally:
        await tracing.close()
