"""The pages in a real browser: what moves, what is copied, who can use them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.fakes import FakeRegistry, image, random_bytes
from tests.peers.browser import opened_browser
from tests.peers.requirements import need
from tests.running import Mirror, running
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

MIB = 1 << 20
NAME = "mirror.example.com:5000"
LONG = "a-team-with-a-long-name/and-a-project-with-an-even-longer-one/the-service-itself"
PAGES = ("/", "/clients?client=containerd")


expect.set_options(timeout=LIMIT_SECONDS * 1000)


@dataclass
class Stage:
    """A mirror that somebody has used, and a browser that finds it under a name."""

    mirror: Mirror
    upstream: FakeRegistry
    browser: Browser
    complaints: list[str] = field(default_factory=list)

    async def page(self, path: str = "/", *, at: str = f"http://{NAME}", **settings: Any) -> Page:
        context: BrowserContext = await self.browser.new_context(**settings)
        page = await context.new_page()
        page.set_default_timeout(LIMIT_SECONDS * 1000)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self._hear("error", str(error)))
        await page.goto(at + path)
        return page

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory) -> AsyncIterator[Stage]:
    need("chromium")
    cache: Path = tmp_path_factory.mktemp("browser") / "cache"
    async with FakeRegistry() as upstream:
        for number, name in enumerate(("library/alpine", LONG, "team/tool")):
            upstream.add_image(name, image(random_bytes(50_000, seed=number)), "3.22")
        async with (
            running(cache, {"docker.io": upstream.url}) as mirror,
            opened_browser({NAME: mirror.url}) as browser,
        ):
            for name in ("alpine", "alpine", LONG, "team/tool", "team/none"):
                await mirror.get(f"/v2/{name}/manifests/3.22", User_Agent="docker/28.3")
            yield Stage(mirror, upstream, browser)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(opened: Stage) -> AsyncIterator[Stage]:
    """The same for every test, which leaves no window open and no complaint behind."""
    opened.complaints.clear()
    yield opened
    for context in opened.browser.contexts:
        await context.close()
    assert opened.complaints == []


async def test_a_download_under_way_moves_its_bar(stage):
    # For 40 s: the page looks every 5 s while there is nothing to be seen.
    stage.upstream.rate = 1.5 * MIB
    digest = stage.upstream.add_blob(random_bytes(60 * MIB, seed=77))
    page = await stage.page()
    await expect(page.get_by_text("No downloads from upstream at the moment")).to_be_visible()
    pulls = [
        asyncio.create_task(stage.mirror.get(f"/v2/team/app/blobs/{digest}")) for _ in range(2)
    ]
    bar = page.get_by_role("progressbar", name="team/app")
    await bar.wait_for()
    element = await bar.element_handle()
    await expect(page.get_by_text("2 clients waiting")).to_be_visible()
    await expect(page.get_by_text("MiB/s")).to_be_visible()
    seen = [float(await bar.get_attribute("value") or 0)]
    while len(seen) < 3:
        await page.wait_for_function(
            "([bar, before]) => Number(bar.value) > before", arg=[element, seen[-1]]
        )
        seen.append(float(await bar.get_attribute("value") or 0))
    assert float(await bar.get_attribute("max") or 0) == 60 * MIB
    stage.upstream.rate = None
    await asyncio.gather(*pulls)
    await expect(page.get_by_text("No downloads from upstream at the moment")).to_be_visible()


async def test_new_pulls_appear_by_themselves_and_the_reader_stays_where_they_are(stage):
    page = await stage.page()
    link = page.get_by_role("link", name="Figures for Prometheus")
    await link.focus()
    await stage.mirror.get("/v2/team/tool/manifests/3.22", User_Agent="skopeo/1.18")
    pulls = page.get_by_role("table").filter(has_text="From cache")
    await expect(pulls.get_by_text("Skopeo")).to_be_visible()
    await expect(link).to_be_focused()


async def test_a_mirror_that_is_gone_is_said(stage):
    page = await stage.page()
    await page.route("**/live", lambda route: route.abort())
    note = page.get_by_role("status").filter(has_text="The mirror does not answer")
    await expect(note).to_be_visible()
    await page.unroute("**/live")
    await expect(note).to_be_hidden()
    stage.complaints[:] = [each for each in stage.complaints if "ERR_FAILED" not in each]


async def test_nobody_asks_for_a_tab_that_nobody_looks_at(stage):
    page = await stage.page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    await page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", { get: () => window.away ?? true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    asked.clear()  # it may have asked just before
    await page.wait_for_timeout(1500)
    assert "live" not in asked
    async with page.expect_request("**/live"):
        await page.evaluate(
            '() => { window.away = false; document.dispatchEvent(new Event("visibilitychange")); }'
        )


@pytest.mark.parametrize("secure", [True, False])
async def test_a_snippet_is_copied_as_it_stands(stage, secure):
    """By the clipboard of today where browsers have it (https, loopback), else by the old one."""
    here = stage.mirror.url if secure else f"http://{NAME}"
    page = await stage.page("/clients?client=podman", at=here)
    assert await page.evaluate("isSecureContext") is secure
    reading = ["clipboard-read", "clipboard-write"]
    await page.context.grant_permissions(reading, origin=stage.mirror.url)
    await page.get_by_role("button", name="/etc/containers/registries.conf.d/mirror.conf").click()
    await expect(page.get_by_role("status")).to_contain_text("is copied")
    text = await page.locator("#file-1").text_content()
    other = await page.context.new_page()
    await other.goto(f"{stage.mirror.url}/clients")
    copied = await other.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == (text or "").strip()
    assert f'location = "{here.removeprefix("http://")}/docker.io"' in copied


async def test_every_client_has_its_own_address(stage):
    page = await stage.page("/")
    await page.get_by_role("link", name="Point a client at it").click()
    await expect(page.locator("pre").first).to_contain_text(
        f'"registry-mirrors": [\n    "http://{NAME}"'
    )
    await page.get_by_role("link", name="k3s").click()
    await expect(page.locator("pre").first).to_contain_text(f'- "http://{NAME}"')


GROUND = "getComputedStyle(document.body).backgroundColor"


async def test_colours_follow_the_system_until_the_reader_says_otherwise(stage):
    page = await stage.page(color_scheme="light")
    light = await page.evaluate(GROUND)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(GROUND)
    assert light != dark
    button = page.get_by_role("button", name="Dark colours")
    await expect(button).to_have_attribute("aria-pressed", "true")
    await button.click()
    assert await page.evaluate(GROUND) == light
    await page.get_by_role("link", name="Point a client at it").click()
    assert await page.evaluate(GROUND) == light, "it is remembered"
    await page.get_by_role("button", name="Dark colours").click()
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(GROUND) == light, "and what is as the system is, stays so"


@pytest.mark.parametrize("path", PAGES)
async def test_a_phone_need_not_scroll_sideways(stage, path):
    page = await stage.page(path, viewport={"width": 360, "height": 740})
    wider = """(selector) => Math.max(...[...document.querySelectorAll(selector)]
        .map((each) => each.scrollWidth - each.clientWidth))"""
    assert await page.evaluate(wider, "html") == 0
    if path == "/":
        assert await page.evaluate(wider, ".scroll") == 0


@pytest.mark.parametrize("path", PAGES)
async def test_the_keyboard_reaches_everything_and_one_sees_where_it_is(stage, path):
    page = await stage.page(path)
    wanted = await page.evaluate(
        "[...document.querySelectorAll('a, button, [tabindex=\"0\"]')]"
        ".filter((each) => each.checkVisibility()).length"
    )
    reached = 0
    for _ in range(wanted):
        await page.keyboard.press("Tab")
        reached += await page.evaluate(
            "document.activeElement.matches(':focus-visible')"
            " && getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
    assert reached == wanted


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
async def test_axe_finds_no_barrier_at_all(stage, path, colours):
    page = await stage.page(path, color_scheme=colours)
    found = await Axe().run(page)
    barriers = [
        f"{each['id']}: {[node['target'] for node in each['nodes']]}"
        for each in found.response["violations"]
    ]
    assert barriers == []
    assert len(found.response["passes"]) > 30


async def test_without_a_script_everything_is_there(stage):
    page = await stage.page("/", java_script_enabled=False)
    await expect(page.get_by_role("table").filter(has_text="From cache")).to_contain_text("alpine")
    await page.get_by_role("link", name="Point a client at it").click()
    await page.get_by_role("link", name="Podman").click()
    await expect(page.locator("pre").first).to_contain_text("[[registry]]")
    assert await page.get_by_role("button").count() == 0
