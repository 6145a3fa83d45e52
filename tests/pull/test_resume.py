"""Downloads that break and go on, so that no client notices and upstream sends little twice."""

import random

import aiohttp
import pytest
from aiohttp import web

from mirror.oci.digest import Digest
from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.running import Mirror, eventually, running

pytestmark = [pytest.mark.slow]


BLOB = "/v2/library/app/blobs/"
MIB = 1 << 20
#: What a break loses at most: the system's buffers on both sides (tcp_wmem, tcp_rmem), aiohttp's.
ON_THE_WAY = 16 * MIB


async def fetched(mirror: Mirror, digest: str) -> Digest:
    """The digest of what arrives, without holding it all."""
    hasher = Digest.parse(digest).hasher()
    async with mirror.session.get(f"{mirror.url}{BLOB}{digest}") as response:
        async for piece in response.content.iter_any():
            hasher.update(piece)
    return Digest("sha256", hasher.hexdigest())


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
async def test_256_mib_over_a_connection_that_breaks_five_times(tmp_path, upstream, seed):
    data = random_bytes(256 * MIB, seed)
    digest = upstream.add_blob(data)
    at = sorted(random.Random(seed).sample(range(len(data)), 5))
    breaks = [end - begin for begin, end in zip([0, *at], at, strict=False)]
    upstream.faults += [
        Fault(cut=size) if number % 2 else Fault(reset=size) for number, size in enumerate(breaks)
    ]
    fill = {"connections": 1}
    async with running(tmp_path, {"docker.io": upstream.url}, fill=fill) as mirror:
        assert str(await fetched(mirror, digest)) == digest
        await eventually(mirror, 'mirror_fills_total{result="resumed",upstream="docker.io"}', 1)
    assert upstream.faults[-1].times == 0, "all five happened"
    asked = [seen.headers.get("Range", "bytes=0-") for seen in upstream.seen]
    starts = [int(part.removeprefix("bytes=").removesuffix("-")) for part in asked]
    print(f"breaks after {breaks}; asked for {asked}")
    assert len(starts) == 6
    for start, size, further in zip(starts, breaks, starts[1:], strict=False):
        assert start + size - ON_THE_WAY <= further <= start + size, "from where it broke"


async def test_a_signed_address_that_has_expired_is_asked_for_anew(mirror, upstream):
    """Storage answers 403 to an old signature: the registry signs another."""
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    valid, signatures = set[str](), iter("abcdefgh")

    def redirect(_: str) -> str:
        signature = next(signatures)
        valid.clear()
        valid.add(signature)
        return f"{storage.url}/v2/x/blobs/{digest}?signature={signature}"

    def guard(request: web.BaseRequest, _: str) -> web.Response | None:
        if request.rel_url.query["signature"] in valid:
            return None
        return web.Response(status=403, text="<Error>expired</Error>")

    async with FakeRegistry(guard=guard) as storage:
        storage.add_blob(data)
        upstream.redirect_blobs_to = redirect
        storage.faults += [
            Fault(cut=3 * MIB),
            Fault(status=403, body=b"<Error>expired</Error>"),
            Fault(cut=2 * MIB),
        ]
        assert str(await fetched(mirror, digest)) == digest
        assert storage.count("blob") == upstream.count("blob") == 4


async def test_a_left_over_that_upstream_refuses_to_go_on_from_is_thrown_away(tmp_path, upstream):
    """What an earlier mirror left is longer than the blob: 416."""
    data = random_bytes(MIB)
    digest = upstream.add_blob(data)
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        left = tmp_path / "partial" / f"blobs.{digest.replace(':', '.')}"
        left.write_bytes(b"something else" * MIB)
        assert str(await fetched(mirror, digest)) == digest
        await eventually(mirror, "mirror_cache_objects", 1)
    assert upstream.count("blob") == 2


@pytest.mark.long
async def test_what_passes_through_goes_on_too(tmp_path, upstream):
    """Without a file too: the hash goes on over the break."""
    data = random_bytes(32 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(cut=9 * MIB), Fault(stall=7 * MIB), Fault(ignore_range=True)]
    cache, fetch = {"max_size": "1MiB"}, {"idle_timeout": "2s"}
    async with running(tmp_path, {"docker.io": upstream.url}, cache=cache, fetch=fetch) as mirror:
        assert str(await fetched(mirror, digest)) == digest
        upstream.faults += [Fault(cut=9 * MIB), Fault(flip=10 * MIB)]
        with pytest.raises(aiohttp.ClientError):
            await fetched(mirror, digest)
        assert (await mirror.metrics())["mirror_cache_objects"] == 0


REFUSED_RANGES: dict[str, tuple[int, dict[str, str]]] = {
    "416": (416, {}),
    "404": (404, {}),
    "400": (400, {}),
    "403": (403, {}),
    "no Content-Range": (206, {}),
    "beyond the end": (206, {"Content-Range": f"bytes 1-{8 * MIB}/{8 * MIB}"}),
    "another unit": (206, {"Content-Range": "items 1-2/3"}),
    "several parts": (206, {"Content-Type": "multipart/byteranges; boundary=x"}),
}


@pytest.mark.parametrize("case", REFUSED_RANGES)
async def test_upstream_is_asked_for_all_again_if_it_cannot_continue(mirror, upstream, case):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    status, headers = REFUSED_RANGES[case]

    def guard(request: web.BaseRequest, _: str) -> web.Response | None:
        if "Range" not in request.headers:
            return None
        return web.Response(status=status, headers=headers, body=b"x")

    upstream.guard = guard
    upstream.faults.append(Fault(cut=5 * MIB))
    assert str(await fetched(mirror, digest)) == digest
    assert upstream.count("blob") <= 3
