"""An upstream that cannot be reached, is too slow, or answers nonsense: one plain answer each."""

import asyncio
import json

import aiohttp
import pytest

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.peers.process import free_port
from tests.running import Mirror, running

REPO = "library/app"
BLOB = "/v2/library/app/blobs/"
NOWHERE = "sha256:" + "0" * 64
QUICK = {"connect_timeout": "200ms", "first_byte_timeout": "200ms", "idle_timeout": "200ms"}


async def told(mirror: Mirror, path: str) -> tuple[int, str]:
    """Status and message; what is asked by tag and by digest must be told alike."""
    answer = await mirror.get(path)
    return answer.status, json.loads(answer.body)["errors"][0]["message"]


@pytest.mark.parametrize("path", [f"/v2/{REPO}/manifests/1", BLOB + NOWHERE])
async def test_a_refused_connection_is_502(tmp_path, path):
    url = f"http://127.0.0.1:{free_port()}"
    async with running(tmp_path, {"docker.io": url}) as mirror:
        assert await told(mirror, path) == (502, f"docker.io: cannot connect to {url}")
        assert (await mirror.metrics())['mirror_upstream_up{upstream="docker.io"}'] == 0


async def test_a_name_that_does_not_resolve_is_502(tmp_path):
    async with running(tmp_path, {"docker.io": "http://registry.invalid"}) as mirror:
        status, message = await told(mirror, BLOB + NOWHERE)
    assert status == 502
    assert "registry.invalid" in message


async def test_plain_http_where_tls_was_meant_is_502(tmp_path, upstream):
    url = upstream.url.replace("http:", "https:")
    async with running(tmp_path, {"docker.io": url}) as mirror:
        status, message = await told(mirror, BLOB + NOWHERE)
    assert status == 502
    assert url in message


async def test_an_upstream_that_hangs_before_its_answer_is_504(tmp_path, upstream):
    digest = upstream.add_blob(b"content")
    upstream.faults.append(Fault(hang_before=True))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        status, message = await told(mirror, BLOB + digest)
        assert (status, "in time" in message) == (504, True)
        await back(mirror, BLOB + digest)
        assert (await mirror.get(BLOB + digest)).body == b"content"


async def test_a_dead_upstream_costs_one_time_out_and_is_noticed_when_it_is_back(
    tmp_path, upstream
):
    """A probe of the mirror's own finds out, no client has to."""
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(5)]
    upstream.faults.append(Fault(kind="", times=100, hang_before=True))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        for digest in digests:
            assert (await mirror.get(BLOB + digest)).status == 504
        assert upstream.count("blob") == 1
        upstream.faults.clear()
        await back(mirror, BLOB + digests[0])
        assert upstream.count("ping") >= 1
        assert (await mirror.metrics())['mirror_upstream_up{upstream="docker.io"}'] == 1


async def back(mirror: Mirror, path: str) -> None:
    """Wait, at most 10 s, until upstream is asked again."""
    async with asyncio.timeout(10):
        while (await mirror.get(path)).status != 200:
            await asyncio.sleep(0.02)


async def test_an_upstream_that_stalls_in_the_middle_is_asked_again_from_there(tmp_path, upstream):
    data = random_bytes(4 << 20)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(stall=2 << 20))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        assert (await mirror.get(BLOB + digest)).body == data
    assert upstream.sent[digest] < 1.1 * len(data)


async def test_an_upstream_that_breaks_off_for_good_breaks_off_its_clients(tmp_path, upstream):
    # aiohttp drops up to 2 MiB that it had not handed out when the connection broke.
    data = random_bytes(32 << 20)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(cut=16 << 20), Fault(times=100, refuse=True)]
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(60):
                await mirror.get(BLOB + digest)
        upstream.faults.clear()
        await back(mirror, BLOB + digest)
        assert (await mirror.get(BLOB + digest)).body == data
    assert upstream.sent[digest] < 1.1 * len(data), "what had arrived was kept"


@pytest.mark.parametrize("status", [500, 502, 503, 418])
async def test_what_upstream_has_no_business_saying_is_502(mirror, upstream, status):
    upstream.add_image(REPO, image(b"layer"), "1")
    upstream.faults.append(Fault(kind="manifest", status=status, body=b"<html>secret</html>"))
    answered, message = await told(mirror, f"/v2/{REPO}/manifests/1")
    assert answered == 502
    assert str(status) in message
    assert "secret" not in message


async def test_401_403_and_404_reach_the_client_as_such(mirror, upstream):
    upstream.add_image(REPO, image(b"layer"), "1")
    for status, code in ((401, "UNAUTHORIZED"), (403, "DENIED"), (404, "MANIFEST_UNKNOWN")):
        upstream.faults.append(Fault(kind="manifest", status=status))
        answer = await mirror.get(f"/v2/{REPO}/manifests/{status}")
        assert answer.status == status
        assert json.loads(answer.body)["errors"][0]["code"] == code


async def test_a_manifest_too_large_to_be_one_is_502(mirror, upstream):
    body = b'{"schemaVersion": 2, "x": "' + b"x" * (5 << 20) + b'"}'
    upstream.add_manifest(REPO, body, "application/vnd.oci.image.manifest.v1+json", "1")
    assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 502


async def test_a_listing_that_is_html_is_502(mirror, upstream):
    page = Fault(kind="tags", status=200, body=b"<html></html>")
    upstream.faults.append(page)
    assert (await mirror.get(f"/v2/{REPO}/tags/list")).status == 502


@pytest.mark.parametrize("broken", ["bytes 5-9/10", "bytes x", "bytes 0-1/2"])
async def test_a_range_that_upstream_gets_wrong_is_not_believed(tmp_path, broken):
    data = random_bytes(1 << 20)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        upstream.faults += [Fault(cut=1 << 19), Fault(headers={"Content-Range": broken})]
        async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
            assert (await mirror.get(BLOB + digest)).body == data
