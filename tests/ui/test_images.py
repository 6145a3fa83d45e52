"""The pages about images, and the JSON below them: what is cached, and nothing that is private."""

import asyncio
import html
import json
import re
from typing import Any

import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of, index
from tests.running import Answer, Mirror, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

KIB = 1024
BROWSER = "text/html"
BASE = random_bytes(300 * KIB, 1)
APP = image(BASE, random_bytes(20 * KIB, 2), marker="app")
TOOL = image(BASE, random_bytes(500 * KIB, 3), marker="tool")


@pytest.fixture
def hub(upstream: FakeRegistry) -> FakeRegistry:
    for name, content in (("library/app", APP), ("team/tool", TOOL)):
        upstream.add_image(name, content)
        upstream.add_manifest(name, index(content), OCI_INDEX, "1")
    return upstream


async def pull(mirror: Mirror, name: str, content, tag: str = "1") -> None:
    for reference in (tag, content.digest):
        answer = await mirror.get(f"/v2/{name}/manifests/{reference}", User_Agent="docker/28")
        assert answer.status == 200
    for digest in content.digests:
        await mirror.get(f"/v2/{name}/blobs/{digest}", User_Agent="docker/28")


def words(answer: Answer) -> str:
    text = html.unescape(re.sub(r"<wbr>|<[^>]+>", " ", answer.body.decode()))
    return " ".join(text.split())


async def api(mirror: Mirror, path: str) -> dict[str, Any]:
    answer = await mirror.get(f"/api/v1/{path}")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def images(mirror: Mirror, query: str = "", *, count: int) -> dict[str, Any]:
    """The answer to a search once it has so many images, all whole."""
    async with limit():
        while True:
            found = await api(mirror, f"images{query}")
            if found["total"] == count and all(each["whole"] for each in found["images"]):
                return found
            await asyncio.sleep(0.1)


async def test_a_search_finds_images_by_parts_of_their_names(mirror, hub):
    await pull(mirror, "library/app", APP)
    await pull(mirror, "team/tool", TOOL)
    found = await images(mirror, "?sort=size", count=2)
    assert [each["familiar"] for each in found["images"]] == ["team/tool:1", "app:1"]
    assert found["images"][1]["platforms"] == ["linux/amd64"]
    assert found["images"][1]["whole"] is True
    assert [each["name"] for each in (await images(mirror, "?q=TOOL+team", count=1))["images"]] == [
        "docker.io/team/tool:1"
    ]
    answer = await mirror.get("/images?q=tool", Accept=BROWSER)
    assert 'href="image?name=docker.io/team/tool%3A1"' in answer.body.decode()
    assert "1 image with “tool”" in words(answer)
    nothing = words(await mirror.get("/images?q=none", Accept=BROWSER))
    assert "No cached image has this name." in nothing


@pytest.mark.long
async def test_a_long_list_has_pages(mirror, upstream):
    for number in range(120):
        upstream.add_image("library/app", image(marker=str(number)), f"t{number:03}")
        answer = await mirror.get(f"/v2/app/manifests/t{number:03}")
        config = json.loads(answer.body)["config"]["digest"]
        await mirror.get(f"/v2/app/blobs/{config}")
    first = await images(mirror, count=120)
    assert (len(first["images"]), first["pages"]) == (50, 3)
    last = await images(mirror, "?page=3", count=120)
    assert [each["reference"] for each in last["images"]] == [f"t{n:03}" for n in range(100, 120)]
    for wrong in ("99", "0", "-1", "x", "9" * 30):
        assert (await api(mirror, f"images?page={wrong}"))["page"] in {1, 3}
    text = (await mirror.get("/images?page=2", Accept=BROWSER)).body.decode()
    assert 'href="images?q=&amp;sort=name&amp;page=3" rel="next"' in text
    assert "Page 2 of 3" in text


async def test_an_image_has_its_layers_and_says_which_are_shared(mirror, hub):
    await pull(mirror, "library/app", APP)
    await pull(mirror, "team/tool", TOOL)
    await images(mirror, count=2)
    found = await api(mirror, "image?name=docker.io/library/app:1")
    (platform,) = found["chosen"]["platforms"]
    assert platform["platform"] == "linux/amd64"
    base, own = platform["layers"]
    assert (base["bytes"], base["shared_with"], base["shared_names"]) == (
        300 * KIB,
        1,
        ["team/tool:1"],
    )
    assert (own["bytes"], own["shared_with"], own["stored"]) == (20 * KIB, 0, True)
    assert (found["chosen"]["pulls"], sum(found["pulls_per_day"].values())) == (1, 1)
    assert len(found["pulls_per_day"]) == 30
    answer = await mirror.get(
        "/image?name=docker.io/library/app:1", Accept=BROWSER, Host="m.lan:5000"
    )
    text = words(answer)
    assert "docker pull app:1" in text
    assert "docker pull m.lan:5000/docker.io/library/app:1" in text
    assert "300 KiB team/tool:1" in text
    assert "20 KiB this image only" in text


async def test_texts_of_an_image_that_harm_a_terminal_or_are_no_text_are_not_shown(
    mirror, upstream
):
    """Everybody can publish an image; one of them ended the page of all images, and `mirror ls`."""
    config = {"os": "\x1b]0;title\x07", "architecture": "\ud800", "variant": "v\n8"}
    data = json.dumps(config).encode()
    manifest = json.loads(image(b"layer").manifest)
    manifest["config"] |= {"digest": upstream.add_blob(data), "size": len(data)}
    manifest["layers"][0]["mediaType"] += "\ud800\x1b[31m"
    manifest["annotations"] = {"org.opencontainers.image.title": "\ud800\x1b[31m"}
    body = json.dumps(manifest).encode()
    upstream.add_manifest("library/app", body, OCI_MANIFEST, "1")
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(body), "size": len(body)}
    entries = [{**entry, "platform": config}]
    table = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    upstream.add_manifest("library/app", table, OCI_INDEX, "2")
    for place in ("manifests/1", "manifests/2", f"blobs/{manifest['config']['digest']}"):
        assert (await mirror.get(f"/v2/library/app/{place}")).status == 200
    async with limit():
        while len((await api(mirror, "images"))["images"]) < 2:
            await asyncio.sleep(0.05)
    for name in ("1", "2"):
        page = await mirror.get(f"/image?name=docker.io/library/app:{name}", Accept=BROWSER)
        assert page.status == 200
        assert b"\x1b" not in page.body
    assert (await mirror.get("/images", Accept=BROWSER)).status == 200


async def test_what_is_not_cached_is_not_found(mirror, hub):
    await pull(mirror, "library/app", APP)
    for name in ("docker.io/library/none", "docker.io/library/app:2", "", "x%00", "a" * 2000):
        assert (await mirror.get(f"/image?name={name}", Accept=BROWSER)).status == 404
        answer = await mirror.get(f"/api/v1/image?name={name}")
        assert answer.status == 404
        assert json.loads(answer.body)["errors"][0]["message"] == "this image is not in the cache"


async def test_names_link_to_their_images(mirror, hub):
    await pull(mirror, "library/app", APP)
    text = (await mirror.get("/", Accept=BROWSER)).body.decode()
    (link, *_) = re.findall(r'href="(image\?name=[^"]+)"', text)
    assert (await mirror.get(f"/{link}", Accept=BROWSER)).status == 200


@pytest.mark.parametrize("path", ["/images", "/image?name=docker.io/library/app:1", "/login"])
async def test_nothing_in_them_is_alive(mirror, hub, path):
    await pull(mirror, "library/app", APP)
    evil = '"><script>alert(1)</script>'
    answer = await mirror.get(f"{path}{'&' if '?' in path else '?'}q=%22%3E%3Cscript%3E", Host=evil)
    text = answer.body.decode()
    assert "<script>" not in text
    assert "style=" not in text
    assert not re.search(r"\son\w+=", text)
    assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"


async def test_failed_pulls_are_listed_with_the_reason(mirror, hub):
    for _ in range(2):
        await mirror.get("/v2/app/manifests/2", User_Agent="docker/28")
    await mirror.get("/v2/app/manifests/sha256-00.sig", User_Agent="cosign/2")
    await mirror.get("/nvcr.example/v2/cuda/manifests/1", User_Agent="docker/28")
    strange, missing = (await api(mirror, "pulls"))["failed"]
    assert strange["reason"].startswith("this mirror is not configured for nvcr.example")
    assert (missing["repository"], missing["reference"], missing["times"]) == (
        "library/app",
        "2",
        2,
    )
    assert missing["reason"] == "docker.io: has no such thing in library/app"
    assert (missing["client"], missing["result"]) == ("Docker", "negative")
    text = words(await mirror.get("/", Accept=BROWSER))
    assert "app :2 2\N{MULTIPLICATION SIGN} Docker negative docker.io: has no such" in text


@pytest.mark.usefixtures("one_day")
async def test_the_charts_have_this_hour_and_today(mirror, hub):
    await pull(mirror, "library/app", APP)
    await pull(mirror, "library/app", APP)
    history = await api(mirror, "history")
    assert (len(history["hours"]), len(history["days"])) == (24, 30)
    (day,) = [each["total"] for each in history["days"] if each["total"]["requests"]]
    assert day["served_bytes"] == 2 * day["upstream_bytes"]
    hours = [each["total"] for each in history["hours"] if each["total"]["requests"]]
    assert sum(each["requests"] for each in hours) == day["requests"]
    assert set(history["days"][-1]["upstreams"]) == {"docker.io"}
    text = (await mirror.get("/", Accept=BROWSER)).body.decode()
    assert text.count('class="line"') == 2
    assert 'aria-label="Hit rate, last 24 hours: 50.0' in text


async def test_who_may_not_pull_may_not_browse_either(tmp_path, upstream):
    access = {"networks": ["192.0.2.0/24"]}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, access=access) as mirror:
        for path in ("/images", "/image?name=a", "/login", "/api/v1/images", "/api/v1/stats"):
            assert (await mirror.get(path, Accept=BROWSER)).status == 403
