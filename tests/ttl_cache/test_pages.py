"""Pages of listings, while they are fresh."""

from mirror.ttl_cache.backend import Backend
from mirror.ttl_cache.pages import Pages


async def test_a_page_comes_back_with_its_fields():
    pages = Pages(Backend(10), 60)
    await pages.put("tags app", b"line\nline", {"next_query": "n=1"})
    assert await pages.lookup("tags app") == (b"line\nline", {"next_query": "n=1"})
    assert await pages.lookup("tags other") is None


async def test_a_page_too_large_to_keep_is_asked_for_again():
    pages = Pages(Backend(10), 60)
    await pages.put("tags app", b"x" * 300_000, {})
    assert await pages.lookup("tags app") is None
