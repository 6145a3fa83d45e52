"""Objects that nobody pulled for long go by themselves."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.oci.digest import Digest
from mirror.store.local.background import Expiry
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import BLOBS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.store.local.partial import Partial
from tests.store.local.test_eviction import Evictions
from tests.waiting import LIMIT_SECONDS

DAY = 86_400.0


class Clock:
    """Time that passes when somebody sleeps; ``slept`` is told how often."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.rounds = asyncio.Semaphore(0)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds >= 1:  # between two rounds
            self.rounds.release()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


@pytest.fixture
async def clock():
    return Clock()


@pytest.fixture
async def objects(layout, clock):
    with ThreadPoolExecutor(2) as threads:
        objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads, clock)
        await objects.open()
        yield objects
        await objects.close()


async def adopt(layout, objects, name: str) -> ObjectKey:
    digest = Digest.of(name.encode())
    key = ObjectKey(BLOBS, digest)
    partial = Partial(layout.partial_of(key), digest)
    partial.write([name.encode()])
    await objects.adopt(key, partial)
    objects.touch(key)
    await objects.flush_touches()
    partial.close()
    return key


async def always() -> bool:
    return True


async def never() -> bool:
    return False


async def one_round(objects, clock, max_age: float, ready=always) -> None:
    aging = asyncio.create_task(Expiry(objects, max_age, ready, clock.sleep, clock).run())
    await asyncio.wait_for(clock.rounds.acquire(), LIMIT_SECONDS)
    aging.cancel()


#: In a process of its own: whatever reads the clock reads this one, from its import on.
STEPPED = """
import asyncio, sys, time
real, step = time.time, [0.0]
time.time = lambda: real() + step[0]
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mirror.store.local.background import Expiry
from mirror.store.local.layout import Layout
from mirror.store.local.objects import Objects
from mirror.store.local.eviction import Limits
from tests.store.local.test_background import Clock, DAY, adopt, always, there
from tests.store.local.test_eviction import Evictions
from tests.waiting import LIMIT_SECONDS

async def main():
    layout, clock = Layout(Path(sys.argv[1])), Clock()
    layout.ensure()
    with ThreadPoolExecutor(2) as threads:
        objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
        await objects.open()
        key = await adopt(layout, objects, "young")
        aging = Expiry(objects, 30 * DAY, always, clock.sleep)
        step[0] = 365 * DAY
        running = asyncio.create_task(aging.run())
        await clock.rounds.acquire()
        running.cancel()
        print(await there(objects, [key]))
        await objects.close()

asyncio.run(main())
"""


@pytest.mark.long
def test_a_clock_that_is_set_makes_nothing_older(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STEPPED, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    assert done.stdout == "[True]\n"


async def there(objects, keys) -> list[bool]:
    held = await objects.consult(lambda index: index.held(keys))
    return [key in held for key in keys]


async def test_what_nobody_pulled_for_so_long_goes_and_no_more_than_that(layout, objects, clock):
    old = [await adopt(layout, objects, f"old {at}") for at in range(70)]
    clock.now += 30 * DAY
    young = await adopt(layout, objects, "young")
    used = old.pop()
    found = await objects.lookup(used)
    found.close()
    await one_round(objects, clock, 30 * DAY)
    assert await there(objects, [*old[:2], used, young]) == [True, True, True, True]
    clock.now += 1
    await one_round(objects, clock, 30 * DAY)
    assert not any(await there(objects, old))
    assert await there(objects, [used, young]) == [True, True]


async def test_what_is_kept_stays(layout, objects, clock):
    kept, other = await adopt(layout, objects, "kept"), await adopt(layout, objects, "other")
    await objects.consult(lambda index: index.kept.put([kept], clock()))
    clock.now += 2 * DAY
    await one_round(objects, clock, DAY)
    assert await there(objects, [kept, other]) == [True, False]


async def test_nothing_goes_while_nobody_knows_what_is_kept(layout, objects, clock):
    old = await adopt(layout, objects, "old")
    clock.now += 2 * DAY
    await one_round(objects, clock, DAY, never)
    assert await there(objects, [old]) == [True]
