"""Fixtures that every test may use."""

import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

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
def one_day() -> None:
    """Begin the test after midnight if that is near: it asks what was done today."""
    now = datetime.now().astimezone()
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left = (midnight - now).total_seconds()
    if left < 120:
        time.sleep(left)


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
