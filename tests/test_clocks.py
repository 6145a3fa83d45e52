"""A clock that is set, either way, while the mirror runs."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

from mirror.ca import CertificateIssuer, new_authority
from mirror.server.warming import Warming
from tests.fakes import image, random_bytes
from tests.proxy.clients import connected
from tests.running import configured, running
from tests.test_ca import handshake, trusting
from tests.waiting import limit

APP = image(random_bytes(1000, 1))
HOUR, YEAR = 3600.0, 365 * 86_400.0


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock on the wall; how time passes stays as it was."""
    passing = time.time
    monkeypatch.setattr(time, "time", lambda: passing() + seconds)


@pytest.mark.slow
@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_a_hot_tag_is_fresh_for_max_age_and_no_longer(tmp_path, upstream, monkeypatch, step):
    upstream.add_image("library/app", APP, "1")
    tags = {"max_age": "1s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        await mirror.get("/v2/library/app/manifests/1")
        set_clock(monkeypatch, step)
        await mirror.get("/v2/library/app/manifests/1")
        asked = len(upstream.seen)
        async with limit():
            while len(upstream.seen) == asked:
                answer = await mirror.get("/v2/library/app/manifests/1")
                assert answer.status == 200
                await asyncio.sleep(0.05)


def test_a_certificate_made_while_the_clock_was_ahead_is_made_again():
    now = datetime.now(UTC)
    authority = new_authority("mirror", now)
    reading = [now + timedelta(days=30)]
    mint = CertificateIssuer(authority, lambda: reading[0])
    early = mint.context("r.example")
    reading[0] = now
    context = mint.context("r.example")
    assert context is not early
    assert handshake(context, trusting(authority), "r.example")


async def test_a_ca_that_expires_is_one_line_and_an_answer(tmp_path, monkeypatch, caplog):
    proxy = {"listen": "127.0.0.1:0"}
    upstreams = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path, upstreams, proxy=proxy) as mirror:
        set_clock(monkeypatch, 11 * YEAR)
        for _ in range(3):
            async with connected(mirror) as client:
                answer = await client.connect("registry-1.docker.io:443")
                assert answer.startswith("HTTP/1.1 502 ")
                assert "the CA of [proxy] is valid from" in answer
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is None
    assert "ca.pem" in errors[0].getMessage()


@pytest.mark.slow
async def test_images_are_pulled_ahead_although_the_clock_is_set_back(tmp_path, caplog):
    began = datetime.now().astimezone()
    readings = iter([began] * 2)
    entry = {"images": ["alpine:1"], "every": "1s"}
    config = configured(tmp_path, {"docker.io": "http://127.0.0.1:9"}, warm=[entry])
    warming = Warming(
        first=True, chance=lambda: 0.0, now=lambda: next(readings, began - timedelta(days=365))
    )
    warming.by(config)
    async with limit():
        while caplog.text.count("could not be pulled ahead of time") < 2:
            await asyncio.sleep(0.05)
    warming.close()
