"""``python -m tools.screenshots [DIRECTORY]``: PNGs of the pages, light, dark and on a phone."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser

from tests.fakes import FakeRegistry
from tests.peers.browser import opened_browser
from tests.running import running
from tools.screenshots.office import (
    HUB,
    MIB,
    UPSTREAMS,
    begin_filling,
    fill_registries,
    work,
    write_history,
)

_URL: Final = "http://mirror.example.com:5000"
_WHERE: Final = Path("config/screenshots")
_WIDE: Final = (1040, 850)
_PHONE: Final = (360, 740)


async def _shoot(
    browser: Browser,
    url: str,
    file: Path,
    colours: Literal["light", "dark"],
    size: tuple[int, int] = _WIDE,
    *,
    whole: bool = False,
) -> None:
    width, height = size
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=colours,
        device_scale_factor=1.5 if size == _WIDE else 2,
    )
    page = await context.new_page()
    await page.goto(url)
    await page.wait_for_timeout(2500)  # the bars move by then
    await page.screenshot(path=file, full_page=whole)
    await context.close()
    print(f"{file}  {file.stat().st_size / 1000:.0f} kB")


async def _shoot_all(browser: Browser, directory: Path) -> None:
    await _shoot(browser, _URL, directory / "status-light.png", "light")
    await _shoot(browser, _URL, directory / "status-dark.png", "dark")
    await _shoot(browser, _URL, directory / "status-phone.png", "light", _PHONE)
    clients = f"{_URL}/clients?client=podman"
    await _shoot(browser, clients, directory / "clients.png", "light")


async def main(directory: Path) -> None:
    """Run the office, and take screenshots of its mirror."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        await write_history(Path(cache) / "ledger")
        async with FakeRegistry() as hub, FakeRegistry() as others:
            fill_registries(hub, others)
            names = {name: hub.url if name == HUB else others.url for name in UPSTREAMS}
            async with running(Path(cache), names, cache={"max_size": "2GiB"}) as mirror:
                await work(mirror)
                hub.rate, others.rate = 11 * MIB, 7 * MIB
                filling = begin_filling(mirror)
                await asyncio.sleep(2)
                async with opened_browser({"mirror.example.com:5000": mirror.url}) as browser:
                    await _shoot_all(browser, directory)
                for each in filling:
                    each.cancel()
                await asyncio.gather(*filling, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else _WHERE))
