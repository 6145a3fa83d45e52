"""Troubles of pulls that last: the log has one line for each, however many requests meet it."""

import contextlib
import logging

import aiohttp
import pytest

from tests.fakes import Fault, image, random_bytes
from tests.peers.process import free_port
from tests.running import running

pytestmark = [pytest.mark.slow]

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/1"
TAGS = f"/v2/{REPO}/tags/list"
BLOB = f"/v2/{REPO}/blobs/"
NEVER_FRESH = {"max_age": "0s"}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that are not about one request."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelno >= logging.WARNING and each.name.startswith(("mirror.pull", "mirror.up"))
    ]


@pytest.mark.long
async def test_one_line_says_that_blobs_find_no_room_and_what_to_raise(tmp_path, upstream, caplog):
    small = {"max_size": "16MiB"}
    data = [random_bytes(20 << 20, seed) for seed in range(2)]
    async with running(tmp_path, {"docker.io": upstream.url}, cache=small) as mirror:
        for number in range(10):
            digest = upstream.add_blob(data[number % 2])
            assert (await mirror.get(BLOB + digest)).body == data[number % 2]
        (line,) = warned(caplog)
    assert line == (
        "docker.io/library/app: no room in the cache for 20.0 MiB; content that does not fit "
        "passes through uncached: raise [cache] max_size, or free some space or inodes on the disk "
        "or lower [cache] min_free"
    )


@pytest.mark.long
async def test_one_line_says_that_a_manifest_finds_no_room(tmp_path, upstream, caplog):
    upstream.add_image(REPO, image(b"layer"), "1")
    none = {"max_size": "1KiB"}
    tags = NEVER_FRESH
    async with running(tmp_path, {"docker.io": upstream.url}, cache=none, tags=tags) as mirror:
        for _ in range(101):
            assert (await mirror.get(TAG)).status == 200
    (line,) = [each for each in warned(caplog) if "no room" in each]
    assert line.startswith("docker.io/library/app: no room in the cache for 0.1 MiB")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "detail", "cause"),
    [
        ({"status": 500}, "unavailable", "answered 500"),
        ({"refuse": True}, "unavailable", "closed the connection without an answer"),
        ({"status": 429, "headers": {"Retry-After": "600"}}, "rate_limited", "answers 429"),
    ],
)
async def test_one_line_says_that_stale_answers_are_served_and_one_that_it_is_over(
    tmp_path, upstream, caplog, fault, detail, cause
):
    caplog.set_level("INFO", "mirror")
    upstream.add_image(REPO, image(b"layer"), "1")
    async with running(tmp_path, {"docker.io": upstream.url}, tags=NEVER_FRESH) as mirror:
        for path in (TAG, TAGS):
            assert (await mirror.get(path)).status == 200
        upstream.faults.append(Fault(kind="tags", times=10_000, **fault))
        upstream.faults.append(Fault(kind="manifest", times=10_000, **fault))
        for _ in range(51):
            for path in (TAG, TAGS):
                answer = await mirror.get(path)
                assert answer.headers["Cache-Status"] == f"mirror; fwd=stale; detail={detail}"
        stale = [each for each in warned(caplog) if "stale" in each]
        assert len(stale) == 1
        assert caplog.text.count("serving") == 1, "no line for each request"
        assert stale[0].startswith("docker.io: serving the last known tags and listings (stale): ")
        assert cause in stale[0]
        upstream.faults.clear()
        if "headers" in fault:  # the pause lasts
            return
        assert (await mirror.get(TAG)).status == 200
    assert any("serving no stale answers any more, after" in each for each in warned(caplog))


@pytest.mark.parametrize("size", [1000, 4 << 20])
async def test_one_line_says_that_a_blob_has_wrong_bytes_and_where_to_look(
    mirror, upstream, caplog, size
):
    digest = upstream.add_blob(random_bytes(size))
    upstream.faults.append(Fault(times=10_000, flip=10))
    for _ in range(21):
        with contextlib.suppress(aiohttp.ClientError):  # if a part of it had been sent
            assert (await mirror.get(BLOB + digest)).status == 502
    (line,) = warned(caplog)
    assert line == (
        f"docker.io: sent bytes for library/app that are not {digest}; not stored: check the "
        f"registry ({upstream.url}) and the proxies and caches on the way"
    )


async def test_one_line_says_that_a_blob_that_passes_through_has_wrong_bytes(
    tmp_path, upstream, caplog
):
    small = {"max_size": "16MiB"}
    digest = upstream.add_blob(random_bytes(20 << 20))
    upstream.faults.append(Fault(times=10_000, flip=10))
    async with running(tmp_path, {"docker.io": upstream.url}, cache=small) as mirror:
        for _ in range(3):
            with pytest.raises(aiohttp.ClientError):
                await mirror.get(BLOB + digest)
    lines = [each for each in warned(caplog) if "sent bytes for library/app" in each]
    assert len(lines) == 1


async def test_one_line_says_that_a_manifest_has_wrong_bytes(mirror, upstream, caplog):
    digest = upstream.add_image(REPO, image(b"layer"), "1")
    body, media_type = upstream.manifests[REPO, digest]
    upstream.manifests[REPO, digest] = (body.replace(b"{", b"{ ", 1), media_type)
    for _ in range(21):
        assert (await mirror.get(f"/v2/{REPO}/manifests/{digest}")).status == 502
    (line,) = warned(caplog)
    assert line.startswith(f"docker.io: sent bytes for library/app that are not {digest}; not st")


async def test_one_line_says_that_a_mirror_sends_wrong_bytes_while_the_registry_is_down(
    tmp_path, upstream, caplog
):
    digest = upstream.add_image(REPO, image(b"layer"), "1")
    body, media_type = upstream.manifests[REPO, digest]
    upstream.manifests[REPO, digest] = (body.replace(b"{", b"{ ", 1), media_type)
    table = {"url": f"http://127.0.0.1:{free_port()}", "mirrors": [upstream.url]}
    async with running(tmp_path, {"docker.io": table}) as mirror:
        for _ in range(21):
            assert (await mirror.get(f"/v2/{REPO}/manifests/{digest}")).status == 502
    lines = [each for each in warned(caplog) if "it is asked last" in each]
    assert len(lines) == 1
    assert f"{upstream.url} sent wrong bytes for {REPO} {digest}" in lines[0]
