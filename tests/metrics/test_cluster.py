"""The metrics of a cluster: the tiers and the uploads."""

from prometheus_client import CollectorRegistry, generate_latest

from mirror.cluster.shared import opened_objects
from mirror.config.cluster import ClusterConfig
from mirror.metrics.cluster import ClusterMetrics
from mirror.oci.digest import Digest
from tests.cluster.conftest import unused
from tests.fakes.memory_store import MemoryStore
from tests.waiting import until

DATA = b"some content"


async def test_uploads_and_downloads_are_counted(tmp_path):
    registry = CollectorRegistry()
    memory, digest = MemoryStore(1_000_000), Digest.of(DATA)
    partial = await memory.blobs.stage(digest)
    await partial.append([DATA])
    await partial.adopt()
    await partial.release()
    config = ClusterConfig(objects=f"file://{tmp_path}/shared")
    metrics = ClusterMetrics(registry)

    def figures() -> list[str]:
        return generate_latest(registry).decode().splitlines()

    parts = memory.blobs, memory.manifests, memory.tags, tmp_path / "uploads", unused, metrics
    async with opened_objects(config, *parts) as shared:
        shared.blobs.upload(digest)
        assert "mirror_uploads_waiting 1.0" in figures()
        await until(lambda: 'mirror_uploads_total{result="stored"} 1.0' in figures())
        async with shared.blobs.open_blob(digest, 5) as stream:
            assert await stream.read() == DATA[5:]
    expected = {
        "mirror_uploads_waiting 0.0",
        'mirror_tier_bytes_total{direction="in",tier="objects"} 7.0',
        'mirror_tier_bytes_total{direction="out",tier="objects"} 12.0',
        'mirror_tier_requests_total{operation="get",result="hit",tier="objects"} 1.0',
        'mirror_tier_requests_total{operation="put",result="stored",tier="objects"} 1.0',
        'mirror_tier_request_seconds_count{operation="get",tier="objects"} 1.0',
        'mirror_tier_up{tier="objects"} 1.0',
    }
    assert expected <= set(figures())
    memory.close()
