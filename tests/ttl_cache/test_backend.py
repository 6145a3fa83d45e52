"""The bounded memory, and the odd behaviours of aiocache it rests on."""

import asyncio

from aiocache import SimpleMemoryCache

from mirror.ttl_cache.backend import Backend


async def test_a_value_is_there_until_its_time_is_over():
    backend = Backend(10)
    await backend.set("a", b"1", 60)
    await backend.set("b", b"1", 0.03)
    await asyncio.sleep(0.05)
    assert (await backend.get("a"), await backend.get("b")) == (b"1", None)


async def test_a_time_that_is_not_positive_keeps_nothing():
    """aiocache's memory would keep a ttl of 0 for ever."""
    backend = Backend(10)
    await backend.set("a", b"1", 60)
    await backend.set("a", b"2", 0)
    assert await backend.get("a") is None


async def test_past_the_limit_the_least_recently_used_goes():
    backend = Backend(3)
    for key in "abc":
        await backend.set(key, b"1", 60)
    await backend.get("a")
    await backend.set("d", b"1", 60)
    assert [await backend.get(key) for key in "abcd"] == [b"1", None, b"1", b"1"]


async def test_past_the_limit_in_bytes_the_least_recently_used_go():
    backend = Backend(1000, most_bytes=10_000)
    for number in range(100):
        await backend.set(str(number), b"x" * 1000, 60)
    kept = [number for number in range(100) if await backend.get(str(number)) is not None]
    assert kept == list(range(94, 100)), "a key and 512 bytes are counted with each"
    await backend.set("a", b"x" * 20_000, 60)
    assert await backend.get("a") is None
    await backend.set("b", b"x", 60)
    assert await backend.get("b") == b"x"


async def test_long_keys_count():
    backend = Backend(1000, most_bytes=10_000)
    for number in range(100):
        await backend.set(f"{number:04000}", b"", 60)
    assert await backend.get(f"{99:04000}") == b""
    assert await backend.get(f"{97:04000}") is None


async def test_writing_again_starts_the_time_anew():
    backend = Backend(10)
    await backend.set("a", b"1", 0.03)
    await backend.set("a", b"2", 60)
    await asyncio.sleep(0.05)
    assert await backend.get("a") == b"2"


async def test_deleting_needs_nothing_to_be_there():
    backend = Backend(10)
    await backend.delete("a")
    await backend.set("a", b"1", 60)
    await backend.delete("a")
    assert await backend.get("a") is None


async def test_contract_aiocaches_memory_has_no_bound_of_its_own():
    cache = SimpleMemoryCache(timeout=0)
    for number in range(1000):
        await cache.set(str(number), b"x")
    assert await cache.get("0") == b"x"


async def test_contract_a_ttl_of_zero_means_for_ever_to_aiocache():
    cache = SimpleMemoryCache(timeout=0)
    await cache.set("a", b"x", ttl=0)
    await asyncio.sleep(0.02)
    assert await cache.get("a") == b"x"
