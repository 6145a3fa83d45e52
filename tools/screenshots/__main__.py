"""``python -m tools.screenshots [--whole] [DIRECTORY]``: PNGs of the pages of a real mirror."""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
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
    suffer,
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


Shot = tuple[str, str, Literal["light", "dark"], tuple[int, int]]
_IMAGE: Final = "image?name=docker.io%2Flibrary%2Fpostgres%3A17"
_CALM: Final[tuple[Shot, ...]] = (
    ("status-calm", "", "light", _WIDE),
    ("images", "images", "light", _WIDE),
    ("image", _IMAGE, "light", _WIDE),
    ("image-phone", _IMAGE, "dark", _PHONE),
    ("clients", "clients?client=podman", "light", _WIDE),
)
_BUSY: Final[tuple[Shot, ...]] = (
    ("status-light", "", "light", _WIDE),
    ("status-dark", "", "dark", _WIDE),
    ("status-phone", "", "light", _PHONE),
)
_TROUBLE: Final[tuple[Shot, ...]] = (
    ("trouble-light", "", "light", _WIDE),
    ("trouble-dark", "", "dark", _WIDE),
    ("trouble-phone", "", "light", _PHONE),
)


async def _shoot_all(
    browser: Browser, directory: Path, shots: Sequence[Shot], *, whole: bool
) -> None:
    for name, path, colours, size in shots:
        file = directory / f"{name}.png"
        await _shoot(browser, f"{_URL}/{path}", file, colours, size, whole=whole)


async def main(directory: Path, *, whole: bool = False) -> None:
    """Run the office, and take screenshots of its mirror: calm, busy and in trouble.

    ``whole``: of the whole pages, not only of what a window shows first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        await write_history(Path(cache) / "ledger")
        async with FakeRegistry() as hub, FakeRegistry() as quay, FakeRegistry() as others:
            registries = dict.fromkeys(UPSTREAMS, others) | {HUB: hub, "quay.io": quay}
            fill_registries(registries)
            urls = {name: registry.url for name, registry in registries.items()}
            async with (
                running(
                    Path(cache), urls, cache={"max_size": "2GiB"}, tags={"max_age": "0s"}
                ) as mirror,
                opened_browser({"mirror.example.com:5000": mirror.url}) as browser,
            ):
                await work(mirror)
                await _shoot_all(browser, directory, _CALM, whole=whole)
                hub.rate = quay.rate = others.rate = 7 * MIB
                filling = begin_filling(mirror)
                await asyncio.sleep(2)
                await _shoot_all(browser, directory, _BUSY, whole=whole)
                for each in filling:
                    each.cancel()
                await asyncio.gather(*filling, return_exceptions=True)
                await suffer(mirror, registries)
                await _shoot_all(browser, directory, _TROUBLE, whole=whole)


if __name__ == "__main__":
    arguments = [each for each in sys.argv[1:] if each != "--whole"]
    where = Path(arguments[0]) if arguments else _WHERE
    asyncio.run(main(where, whole="--whole" in sys.argv))
