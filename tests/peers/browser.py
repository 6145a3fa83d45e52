"""Debian's Chromium without a window, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from playwright.async_api import Browser, async_playwright


@asynccontextmanager
async def opened_browser(names: Mapping[str, str] | None = None) -> AsyncIterator[Browser]:
    """A browser of our own; closed, with all its processes, when the context ends.

    ``names`` maps ``host:port`` as pages are to see it to the url where that really is.
    """
    program = shutil.which("chromium")
    assert program is not None, "apt-get install chromium"
    rules = [f"MAP {name} {urlsplit(url).netloc}" for name, url in (names or {}).items()]
    arguments = [f"--host-resolver-rules={','.join(rules)}"] if rules else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()
