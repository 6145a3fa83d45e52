"""An upstream that is down: one line in the log when it goes, one when it is back."""

import asyncio
import logging
import socket

import pytest
from aiohttp import web
from yarl import URL

from mirror.upstream.errors import TimedOutError
from mirror.upstream.rate_limit import RateLimits
from mirror.upstream.sessions import TransportSettings
from mirror.upstream.transport import Request, Transport
from tests.fakes import FakeRegistry, Fault, image
from tests.peers.process import free_port
from tests.running import running
from tests.upstream.test_transport import Unheard
from tests.waiting import until

pytestmark = [pytest.mark.slow]

TAG = "/v2/library/app/manifests/1"
QUICK = {"connect_timeout": "5s", "first_byte_timeout": "5s", "idle_timeout": "5s"}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about upstreams."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelno >= logging.WARNING and each.name.startswith("mirror.upstream")
    ]


async def test_one_line_says_that_upstream_is_down_and_one_that_it_is_back(tmp_path, caplog):
    upstream = FakeRegistry(port=free_port())
    upstream.add_image("library/app", image(b"layer"), "1")
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        for _ in range(101):
            assert (await mirror.get(TAG)).status == 502
        (down,) = warned(caplog)
        assert down.startswith(
            f"docker.io: {upstream.url} does not answer: cannot connect to {upstream.url} "
            "(connection refused); cached images are still served"
        )
        assert "check the network, DNS" in down
        async with upstream:
            assert (await mirror.get(TAG)).status == 200
            assert (await mirror.get(TAG)).status == 200
    _, back = warned(caplog)
    assert back.startswith(f"docker.io: {upstream.url} answers again, after ")


async def test_errors_of_one_object_are_no_trouble_of_the_server(tmp_path, upstream, caplog):
    upstream.add_image("library/app", image(b"layer"), "1")
    upstream.guard = lambda _, path: web.Response(status=500) if "broken" in path else None
    tags = {"max_age": "0s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        for _ in range(5):
            for method in ("HEAD", "GET"):
                assert (await mirror.get("/v2/broken/manifests/1", method)).status == 502
            assert (await mirror.get(TAG)).status == 200
        assert warned(caplog) == []
        for number in range(3):
            assert (await mirror.get(f"/v2/broken{number}/manifests/1")).status == 502
        (line,) = warned(caplog)
        assert line.startswith(f"docker.io: {upstream.url} answers 500 to each request: see the")
        assert (await mirror.get(TAG)).status == 200
    _, back = warned(caplog)
    assert back.startswith(f"docker.io: {upstream.url} answers again, after ")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "cause"),
    [
        ({"hang_before": True}, 504, "did not answer in time"),
        ({"refuse": True}, 502, "closed the connection without an answer"),
    ],
)
async def test_an_upstream_that_takes_connections_only_is_down_too(
    tmp_path, upstream, caplog, fault, status, cause
):
    upstream.faults.append(Fault(kind="", times=10_000, **fault))
    paths = [f"/v2/library/app/manifests/{number}" for number in range(5)]
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        for path in paths * 20:
            assert (await mirror.get(path)).status == status
        (down,) = warned(caplog)
        assert f"docker.io: {upstream.url} does not answer: {upstream.url} {cause}" in down
        upstream.faults.clear()
        await until(lambda: len(warned(caplog)) > 1)
    assert "answers again" in warned(caplog)[1]
    assert "Error" not in caplog.text


@pytest.mark.long
async def test_no_probe_outlives_its_transport_however_many_servers_are_down():
    """Storage with changing host names, which accepts connections and says nothing."""
    silent = socket.create_server(("", 0), backlog=1024)
    port = silent.getsockname()[1]
    settings = TransportSettings(first_byte_timeout=0.05, private_redirects=True)

    def probes() -> int:
        return sum(task.get_name() == "probe" for task in asyncio.all_tasks())

    async with Transport("docker.io", "127.0.0.1", settings, Unheard()) as transport:
        for number in range(1, 80):
            url = URL(f"http://127.0.0.{number}:{port}/v2/")
            with pytest.raises(TimedOutError):
                await transport.send(Request("HEAD", url, "blob"), RateLimits("docker.io"))
        await until(lambda: probes() <= 64)
    assert not probes()
    silent.close()
