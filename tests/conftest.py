"""Fixtures that every test may use, and how tests share a machine when several run at once."""

import fcntl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes import FakeRegistry
from tests.running import Mirror, running


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


# Several at once (`make test` runs as many processes as there are cores).


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compare times come last; what a module starts, it starts once."""
    for item in items:
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.xdist_group("alone"))
        elif item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.fixture(autouse=True)
def company(request, tmp_path_factory, worker_id) -> Iterator[None]:
    """Let a test that is to be alone wait for all others, and no other begin meanwhile."""
    if worker_id == "master":  # there is but one process
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    common = tmp_path_factory.getbasetemp().parent
    with _locked(common / "gate", kind) as gate, _locked(common / "room", kind):
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)  # whoever waits to be alone may have it
        yield


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[int]:
    with path.open("a") as file:
        fcntl.flock(file.fileno(), kind)
        yield file.fileno()
