"""The bounds and the expiry of entries, and the odd behaviours of aiocache that this rests on."""

import asyncio
import math
import time

from aiocache import SimpleMemoryCache

from mirror.ttl_cache import TtlCache


def cache(ttl: float = 60, most: int = 10, most_bytes: int = 100_000) -> TtlCache[bytes]:
    return TtlCache(ttl, most, most_bytes)


async def test_a_value_is_there_until_its_time_is_over():
    values = cache()
    await values.put("a", b"1")
    await values.put("b", b"1", ttl=0.03)
    await asyncio.sleep(0.05)
    assert (await values.lookup("a"), await values.lookup("b")) == (b"1", None)


async def test_an_entry_says_when_it_ends():
    values, before = cache(ttl=60), time.monotonic()
    await values.put("a", b"1")
    value, until = await values.entry("a") or (b"", math.nan)
    assert (value, before + 60 <= until <= time.monotonic() + 60) == (b"1", True)
    assert await values.entry("b") is None


async def test_a_time_that_is_not_positive_removes_the_value():
    """aiocache's memory would keep a ttl of 0 for ever."""
    values = cache()
    await values.put("a", b"1")
    await values.put("a", b"2", ttl=0)
    assert await values.lookup("a") is None


async def test_past_the_limit_the_least_recently_used_goes():
    values = cache(most=3)
    for name in "abc":
        await values.put(name, b"1")
    await values.lookup("a")
    await values.put("d", b"1")
    assert [await values.lookup(name) for name in "abcd"] == [b"1", None, b"1", b"1"]


async def test_past_the_limit_in_bytes_the_least_recently_used_go():
    values = cache(most=1000, most_bytes=10_000)
    for number in range(100):
        await values.put(str(number), b"x" * 1000)
    held = [number for number in range(100) if await values.lookup(str(number)) is not None]
    assert held == list(range(94, 100)), "a name and 512 bytes are counted with each"
    await values.put("a", b"x" * 20_000)
    assert await values.lookup("a") is None
    await values.put("b", b"x")
    assert await values.lookup("b") == b"x"


async def test_long_names_count():
    values = cache(most=1000, most_bytes=10_000)
    for number in range(100):
        await values.put(f"{number:04000}", b"")
    assert await values.lookup(f"{99:04000}") == b""
    assert await values.lookup(f"{97:04000}") is None


async def test_the_size_of_a_value_can_be_told():
    pages: TtlCache[tuple[bytes, int]] = TtlCache(60, 10, 2000, lambda page: len(page[0]))
    await pages.put("a", (b"x" * 600, 1))
    await pages.put("b", (b"x" * 600, 2))
    assert (await pages.lookup("a"), await pages.lookup("b")) == (None, (b"x" * 600, 2))


async def test_a_value_that_is_too_large_is_not_held():
    values: TtlCache[bytes] = TtlCache(60, 10, 100_000, largest=10)
    await values.put("a", b"x" * 10)
    await values.put("b", b"x" * 11)
    assert (await values.lookup("a"), await values.lookup("b")) == (b"x" * 10, None)


async def test_writing_again_starts_the_time_anew():
    values = cache()
    await values.put("a", b"1", ttl=0.03)
    await values.put("a", b"2")
    await asyncio.sleep(0.05)
    assert await values.lookup("a") == b"2"


async def test_forgetting_needs_nothing_to_be_there():
    values = cache()
    await values.forget("a")
    await values.put("a", b"1")
    await values.forget("a")
    assert await values.lookup("a") is None


async def test_contract_aiocaches_memory_has_no_bound_of_its_own():
    memory = SimpleMemoryCache(timeout=0)
    for number in range(1000):
        await memory.set(str(number), b"x")
    assert await memory.get("0") == b"x"


async def test_contract_a_ttl_of_zero_means_for_ever_to_aiocache():
    memory = SimpleMemoryCache(timeout=0)
    await memory.set("a", b"x", ttl=0)
    await asyncio.sleep(0.02)
    assert await memory.get("a") == b"x"
