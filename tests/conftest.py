"""Fixtures that every test may use."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes import FakeRegistry
from tests.running import Mirror, running

# No test may fail because the machine is busy.
settings.register_profile("mirror", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mirror")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """An empty registry that does everything right until told otherwise."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def mirror(tmp_path, upstream: FakeRegistry) -> AsyncIterator[Mirror]:
    """A mirror of that registry as docker.io, with an empty cache."""
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        yield mirror
