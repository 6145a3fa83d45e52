"""A transport leaves nothing open, whatever ends it."""

import asyncio
import contextlib
import gc

import pytest
from yarl import URL

from mirror.upstream.errors import UpstreamError
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.sessions import TransportSettings
from mirror.upstream.transport import Request, Transport
from tests.peers.process import free_port


class Unheard:
    def upstream_answered(self, *said: object) -> None:
        pass

    upstream_bytes = upstream_rate_limit = upstream_answered
    upstream_limited = upstream_login = upstream_answered


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_sessions_are_closed_although_the_closing_is_cancelled(turns):
    transport = Transport("docker.io", "127.0.0.1", TransportSettings(), Unheard())
    await transport.__aenter__()
    url = URL(f"http://127.0.0.1:{free_port()}/v2/")
    for _ in range(4):  # opens the breaker, whose probe is to be stopped
        with pytest.raises(UpstreamError):
            await transport.send(Request("GET", url, "ping"), RateLimits("docker.io"))
    closing = asyncio.create_task(transport.__aexit__(None, None, None))
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    del transport
    gc.collect()  # an open session says so with a warning, which fails the test
