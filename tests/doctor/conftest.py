"""Fixtures for examinations."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doctor.machine import Machine
from tests.fakes import FakeRegistry, image
from tests.running import Mirror, running


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root")


@pytest.fixture
async def office(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[Mirror]:
    """A mirror of two registries, one of them Docker Hub."""
    upstream.add_image("library/busybox", image(b"layer"), "latest")
    names = {"docker.io": upstream.url, "second.example.com": upstream.url}
    async with running(tmp_path / "cache", names) as mirror:
        yield mirror
