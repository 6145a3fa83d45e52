"""Fixtures that every test may use."""

import logging
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes import FakeRegistry
from tests.running import Mirror, running

# No test may fail because the machine is busy.
settings.register_profile("mirror", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mirror")

# A shell's background job ignores Ctrl-C, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """An empty registry that does everything right until told otherwise."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def log() -> Iterator[None]:
    """Restore the log of this process, which a reload of a mirror in it configures."""
    root, access = logging.getLogger(), logging.getLogger("mirror.access")
    before = (root.handlers[:], root.level, access.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    access.setLevel(before[2])


@pytest.fixture
async def mirror(tmp_path, upstream: FakeRegistry) -> AsyncIterator[Mirror]:
    """A mirror of that registry as docker.io, with an empty cache."""
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        yield mirror
