"""The pages in a real browser: what moves, what is copied, who can use them."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, expect

from mirror.http.token import create_token
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.peers.browser import opened_browser
from tests.peers.requirements import need
from tests.running import Mirror, running
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

MIB = 1 << 20
NAME = "mirror.example.com:5000"
LONG = "a-team-with-a-long-name/and-a-project-with-an-even-longer-one/the-service-itself"
IMAGE = f"/image?name=docker.io/{LONG}:3.22"
PAGES = ("/", "/clients?client=containerd", "/images", IMAGE, "/login")


expect.set_options(timeout=LIMIT_SECONDS * 1000)


@dataclass
class Stage:
    """A mirror that somebody has used, and a browser that finds it under a name."""

    mirror: Mirror
    upstream: FakeRegistry
    browser: Browser
    cache: Path
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
            yield Stage(mirror, upstream, browser, cache)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(opened: Stage) -> AsyncIterator[Stage]:
    """The same for every test, which leaves no window open and no complaint behind."""
    opened.complaints.clear()
    yield opened
    for context in opened.browser.contexts:
        await context.close()
    assert opened.complaints == []


async def test_a_download_under_way_moves_its_bar(stage):
    # For 80 s: the page looks every 5 s while there is nothing to be seen.
    stage.upstream.rate = 1.5 * MIB
    digest = stage.upstream.add_blob(random_bytes(120 * MIB, seed=77))
    page = await stage.page()
    await expect(page.get_by_text("No downloads from upstream at the moment")).to_be_visible()
    pulls = [
        asyncio.create_task(stage.mirror.get(f"/v2/team/app/blobs/{digest}")) for _ in range(2)
    ]
    bar = page.get_by_role("progressbar", name="team/app")
    await bar.wait_for()
    element = await bar.element_handle()
    await expect(page.get_by_text("2 clients waiting")).to_be_visible()
    place = await page.get_by_role("heading", name="Recent pulls").bounding_box()
    await expect(page.get_by_text("MiB/s")).to_be_visible()
    seen = [float(await bar.get_attribute("value") or 0)]
    while len(seen) < 3:
        await page.wait_for_function(
            "([bar, before]) => Number(bar.value) > before", arg=[element, seen[-1]]
        )
        seen.append(float(await bar.get_attribute("value") or 0))
    assert float(await bar.get_attribute("max") or 0) == 120 * MIB
    stage.upstream.rate = None
    await asyncio.gather(*pulls)
    await expect(page.get_by_text("No downloads from upstream at the moment")).to_be_visible()
    heading = page.get_by_role("heading", name="Recent pulls")
    assert await heading.bounding_box() == place, "the page below stays where it is"


async def test_new_pulls_appear_by_themselves_and_the_reader_stays_where_they_are(stage):
    page = await stage.page()
    link = page.get_by_role("link", name="Figures for Prometheus")
    await link.focus()
    await stage.mirror.get("/v2/team/tool/manifests/3.22", User_Agent="skopeo/1.18")
    pulls = page.get_by_role("table").filter(has_text="From cache")
    await expect(pulls.get_by_text("Skopeo")).to_be_visible()
    await expect(link).to_be_focused()


async def test_the_legend_stays_open_while_the_page_is_refreshed(stage):
    page = await stage.page()
    await page.get_by_text("What the results mean").click()
    meaning = page.get_by_text("another client was downloading it already")
    await expect(meaning).to_be_visible()
    async with page.expect_response("**/live"):
        pass
    async with page.expect_response("**/live"):  # the former one is on the page by then
        pass
    await expect(meaning).to_be_visible()


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


async def test_copy_copies_the_command_alone(stage):
    page = await stage.page("/clients?client=docker", at=stage.mirror.url)
    reading = ["clipboard-read", "clipboard-write"]
    await page.context.grant_permissions(reading, origin=stage.mirror.url)
    command = page.locator(".command").filter(has_text="docker pull")
    await command.get_by_role("button").click()
    await expect(page.get_by_role("status")).to_contain_text("is copied")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"docker pull 127\.0\.0\.1:\d+/[a-z.]+/IMAGE", copied.strip())


async def test_one_finds_an_image_and_its_layers_without_a_script(stage):
    page = await stage.page("/", java_script_enabled=False)
    await page.get_by_role("link", name="Images", exact=True).click()
    await page.get_by_role("searchbox", name="Search images").fill("team")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name="team/tool:3.22").click()
    await expect(page.get_by_role("heading", name="team/tool:3.22")).to_be_visible()
    await expect(page.get_by_text("docker pull team/tool:3.22")).to_be_visible()
    await expect(page.get_by_role("heading", name="Layers")).to_be_visible()


async def test_with_the_token_one_keeps_and_drops_an_image_without_a_script(stage):
    token = await asyncio.to_thread(create_token, stage.cache / "control" / "token")
    page = await stage.page("/", java_script_enabled=False)
    await page.get_by_role("link", name="Sign in to change the cache").click()
    await page.get_by_role("textbox", name="Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("link", name="alpine:3.22").click()
    await page.get_by_role("button", name="Keep docker.io/library/alpine:3.22").click()
    await expect(page.get_by_role("status").first).to_contain_text("it is never evicted")
    await page.get_by_role("button", name="Release").click()
    await expect(page.get_by_role("status").first).to_contain_text("may be evicted again")
    await page.get_by_role("button", name="Drop").click()
    await expect(page.get_by_role("status").first).to_contain_text("The image was dropped")
    await expect(page.get_by_role("link", name="alpine:3.22")).to_have_count(0)
    found = await Axe().run(await signed_in(stage, token))
    assert found.response["violations"] == []
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("link", name="Sign in to change the cache")).to_be_visible()
    await stage.mirror.get("/v2/alpine/manifests/3.22", User_Agent="docker/28.3")


async def signed_in(stage: Stage, token: str) -> Page:
    """The page of an image with its buttons."""
    page = await stage.page("/login")
    await page.get_by_role("textbox", name="Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("link", name="team/tool:3.22").click()
    await expect(page.get_by_role("button", name="Drop")).to_be_visible()
    return page


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_troubles_have_no_barrier_and_fit_a_phone(stage, colours):
    limited = {"Retry-After": "600"}
    stage.upstream.faults.append(Fault(kind="manifest", status=429, headers=limited))
    await stage.mirror.get("/v2/team/new/manifests/1", User_Agent="docker/28.3")
    page = await stage.page("/", color_scheme=colours, viewport={"width": 360, "height": 740})
    await expect(page.get_by_role("heading", name="docker.io limits requests")).to_be_visible()
    assert await page.evaluate(WIDER, "html") == 0
    found = await Axe().run(page)
    assert [each["id"] for each in found.response["violations"]] == []


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


WIDER = """(selector) => Math.max(...[...document.querySelectorAll(selector)]
    .map((each) => each.scrollWidth - each.clientWidth))"""


@pytest.mark.parametrize("path", PAGES)
async def test_a_phone_need_not_scroll_sideways(stage, path):
    page = await stage.page(path, viewport={"width": 360, "height": 740})
    assert await page.evaluate(WIDER, "html") == 0
    if path == "/":
        assert await page.evaluate(WIDER, ".scroll") == 0
    if "clients" in path:
        assert await page.evaluate(WIDER, "pre") == 0, "nothing is cut off"


FOCUSABLE = "'a, button, summary, select, input:not([type=hidden]), [tabindex=\"0\"]'"


@pytest.mark.parametrize("path", PAGES)
async def test_the_keyboard_reaches_everything_and_one_sees_where_it_is(stage, path):
    page = await stage.page(path)
    wanted = await page.evaluate(
        "[...document.querySelectorAll(" + FOCUSABLE + ")]"
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
    assert len(found.response["passes"]) > 20


async def test_without_a_script_everything_is_there(stage):
    page = await stage.page("/", java_script_enabled=False)
    await expect(page.get_by_role("table").filter(has_text="From cache")).to_contain_text("alpine")
    await page.get_by_role("link", name="Point a client at it").click()
    await page.get_by_role("link", name="Podman").click()
    await expect(page.locator("pre").first).to_contain_text("[[registry]]")
    assert await page.get_by_role("button").count() == 0
    await page.get_by_role("link", name="Status").click()
    await expect(page.get_by_role("img", name="Hit rate, last 24 hours")).to_be_visible()
