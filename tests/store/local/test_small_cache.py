"""A small cache with thousands of tiny objects and records: the directory stays within max_size."""

import json
import os
from itertools import count

import pytest

from mirror.config import load
from mirror.metrics.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.server.store import cache_limits, opened_store
from mirror.store.interface import Link, Manifest, NoRoomError, Page, link_name
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import MANIFESTS, Layout, ObjectKey
from tests.fakes import FakeRegistry, random_bytes
from tests.running import running

pytestmark = [pytest.mark.long]

MIB = 1 << 20


def du(directory) -> int:
    """Bytes on the disk, each file once."""
    sizes = {}
    for place, _, names in os.walk(directory):
        for name in (".", *names):
            found = os.stat(os.path.join(place, name), follow_symlinks=False)
            sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def config_of(directory, max_bytes: int):
    return load(
        None, {"cache": {"directory": str(directory), "min_free": "0", "max_size": str(max_bytes)}}
    )


async def fill(store, numbers) -> None:
    """Put a manifest; with every fourth a tag, a private link and a listing."""
    number = next(numbers)
    body = json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "n": number}).encode()
    digest = Digest.of(body)
    await store.manifests.put(Manifest(digest, OCI_MANIFEST, body))
    if number % 4:
        return
    name = FullName("docker.io", f"library/app{number}", "1")
    await store.tags.put(link_name(name), Link(Descriptor(OCI_MANIFEST, digest, len(body)), 1.0))
    await store.private.links.put(f"{name} {digest}")
    await store.listings.put(f"{name}", Page(os.urandom(8000), {}, 1.0))


@pytest.mark.parametrize(
    "max_bytes", [int(size) * MIB for size in os.environ.get("CACHE_MIB", "8").split(",")]
)
async def test_thousands_of_tiny_objects_and_records_stay_within_max_size(tmp_path, max_bytes):
    config, numbers = config_of(tmp_path, max_bytes), count()
    async with opened_store(config, Metrics("0")) as store:
        measured = []
        for _ in range(8):
            for _ in range(max_bytes // 4096 // 8):
                await fill(store, numbers)
            measured.append(du(tmp_path))
            await store.heal()  # as a mirror does every five seconds
        usage = await store.objects.usage()
        taken = du(tmp_path)
    print(f"{next(numbers)} each; {[size // 1024 for size in measured]} KiB")
    assert max(measured) <= max_bytes
    assert usage.objects > max_bytes / 4096 / 3, "the room is used"
    assert abs(usage.used_bytes + usage.overhead_bytes - taken) <= 65536, "it is counted as it is"


async def test_a_lower_limit_drops_records_at_once(tmp_path):
    numbers = count()
    async with opened_store(config_of(tmp_path, 1024 * MIB), Metrics("0")) as store:
        for _ in range(1200):
            await fill(store, numbers)
        assert du(tmp_path / "listings") > MIB
        await store.limit(cache_limits(config_of(tmp_path, 4 * MIB)))
        assert du(tmp_path) <= 4 * MIB
        assert du(tmp_path / "listings") < MIB // 2
        assert await store.listings.lookup("docker.io/library/app1196:1") is not None


async def test_rows_of_an_earlier_version_are_counted_in_whole_blocks(tmp_path):
    layout = Layout(tmp_path)
    layout.ensure()
    index = ObjectIndex(layout)
    for number in range(3):
        path = layout.partial / str(number)
        path.write_bytes(b"%d" % number)
        index.adopt(ObjectKey(MANIFESTS, Digest.of(b"%d" % number)), path, 1)
    with index._cache.transact():
        index._cache._sql("UPDATE Cache SET size = 1")
    index._cache._sql("PRAGMA user_version = 0")
    assert index.total_bytes() == 3
    index.close()
    again = ObjectIndex(layout)
    assert again.total_bytes() == 3 * 4096
    entries = map(again.lookup, (row.key for row in again.rows_after(0, 9)))
    assert {entry and entry.size for entry in entries} == {1}
    again.close()


async def test_a_cache_smaller_than_its_databases_says_so_at_the_start(tmp_path, caplog):
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(random_bytes(1000))
        cache = {"max_size": "100KiB"}
        async with running(tmp_path, {"docker.io": upstream.url}, cache=cache) as mirror:
            assert (await mirror.get(f"/v2/library/app/blobs/{digest}")).status == 200
            assert (await mirror.metrics())["mirror_cache_objects"] == 0
            figures = await mirror.metrics()
    (said,) = [text for text in caplog.messages if text.startswith("max_size")]
    assert said.startswith("max_size 100KiB leaves little or no room: the databases")
    assert figures["mirror_cache_overhead_bytes"] > 100 * 1024


async def test_no_room_is_no_error_of_the_store(tmp_path):
    async with opened_store(config_of(tmp_path, 100 * 1024), Metrics("0")) as store:
        with pytest.raises(NoRoomError):
            await fill(store, count())
