"""A mirror that gets no further thread, or hardly any memory: what it answers is right."""

import contextlib
import random

import pytest

from tests.fakes import FakeRegistry
from tests.peers.mirror import MirrorProcess
from tools.soak.scarce import (
    EXTRA,
    Counts,
    Crowd,
    fill,
    lookup_cgroups,
    no_more_memory,
    no_more_threads,
)

pytestmark = [pytest.mark.e2e, pytest.mark.long]

CLIENTS, ROUNDS = 16, 60
MIB = 1 << 20
ANSWERS = {"left", "may: 200", "may: 206", "may not: 401"}


@pytest.mark.parametrize("limit", ["pids", "memory"])
async def test_each_client_gets_what_it_may_have_and_nothing_else(tmp_path, limit):
    if limit == "pids" and lookup_cgroups() is None:
        pytest.skip("a pids cgroup can be made neither here nor by this user")
    async with FakeRegistry() as registry:
        office, owners = fill(registry)
        mirror = MirrorProcess(tmp_path, {"docker.io": registry.url}, EXTRA, measured=False)
        mirror.start()
        tally, rounds = Counts(), iter(range(ROUNDS))
        crowd = Crowd(mirror.url, office, owners, tally, random.Random(5))
        try:
            with contextlib.ExitStack() as stack:
                if limit == "memory":
                    no_more_memory(mirror.pid, 32 * MIB)
                else:
                    stack.enter_context(no_more_threads(mirror.pid, 0))
                await crowd.run(CLIENTS, lambda: next(rounds, None) is not None)
        finally:
            mirror.kill()
        assert not tally.wrong
        assert not [name for name in tally.results if name not in ANSWERS], tally.results
        assert "Traceback" not in mirror.output()
