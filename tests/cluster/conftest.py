"""Fixtures of clusters: a fake bucket, what is told about tiers, and Redis."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from mirror.config.cluster import ClusterConfig
from mirror.config.fields import Duration
from mirror.store.local.layout import ObjectKey
from tests.cluster.replicas import Redis, running_redis
from tests.fakes.bucket import BUCKET, FakeBucket


@dataclass
class Events:
    """The events of the object store and of uploads, counted."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    up: list[bool] = field(default_factory=list)
    waiting: int = 0
    uploads: Counter[str] = field(default_factory=Counter)
    held: int = 0
    evicted: Counter[str] = field(default_factory=Counter)

    def tier_answered(self, tier: str, operation: str, result: str, seconds: float) -> None:
        self.answers[operation, result] += 1

    def tier_bytes(self, tier: str, direction: str, count: int) -> None:
        self.bytes[direction] += count

    def tier_up(self, tier: str, up: bool) -> None:
        self.up.append(up)

    def uploads_waiting(self, change: int) -> None:
        self.waiting += change

    def upload_ended(self, result: str) -> None:
        self.uploads[result] += 1

    def tier_holds(self, tier: str, size: int) -> None:
        self.held = size

    def tier_evicted(self, tier: str, objects: int, size: int) -> None:
        self.evicted.update(objects=objects, bytes=size)


async def unused(after: float) -> tuple[ObjectKey, ...]:
    """A mirror that has used nothing."""
    return ()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def fake() -> AsyncIterator[FakeBucket]:
    async with FakeBucket().running() as fake:
        yield fake


def of_fake(fake: FakeBucket, patience: str = "20s") -> ClusterConfig:
    """The configuration for a fake bucket; ``patience`` until the first byte."""
    return ClusterConfig(
        objects=f"s3://{BUCKET}/cache",
        endpoint=fake.url,
        first_byte_timeout=Duration.parse(patience),
    )


@pytest.fixture(autouse=True)
def keys(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def redis(tmp_path) -> Iterator[Redis]:
    """A Redis of its own."""
    with running_redis(tmp_path) as redis:
        yield redis
