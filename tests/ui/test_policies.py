"""Held, pinned and blocked images on the pages and in the API, and the changes to them by HTTP."""

import asyncio
import html
import json
import re
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from mirror.admin.commands import blocked, unblocked
from mirror.http.token import create_token
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.clock import Clock
from tests.fakes.content import OCI_MANIFEST
from tests.fakes.office import EVERYBODY, Office, basic
from tests.peers.mirror import MirrorProcess
from tests.running import Mirror, configured, running
from tests.ui.test_changes import FORM, change, proof, send, signed_in
from tests.waiting import until

pytestmark = [pytest.mark.slow]

DAY = 86_400.0
APP = "docker.io/library/app:1"
FORMER, NEW, OTHER = (image(random_bytes(2000, seed), marker=str(seed)) for seed in range(3))
RULE = {"images": ["docker.io/**", "ghcr.io/**"], "cooldown": "3d", "unseen": "allow"}
TAG = "/v2/library/app/manifests/1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, upstream: FakeRegistry, clock: Clock):
    """Opens a mirror with rules; tags are asked for each time."""
    upstream.add_image("library/app", FORMER, "1")

    @asynccontextmanager
    async def site(*rules: dict[str, Any], **sections: Any):
        upstreams = sections.pop("upstreams", {"docker.io": upstream.url})
        tags, policy = {"max_age": "0s"}, list(rules) or [RULE]
        cache = tmp_path / "cache"
        async with running(
            cache, upstreams, clock=clock, policy=policy, tags=tags, **sections
        ) as mirror:
            token = await asyncio.to_thread(create_token, cache / "control" / "token")
            yield mirror, token

    return site


async def policies(mirror: Mirror) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await mirror.get("/api/v1/policies")).body)
    return found


async def chosen(mirror: Mirror, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await mirror.get(f"/api/v1/image?name={name}")).body)
    return dict(found["chosen"])


async def words(mirror: Mirror, path: str = "/", **headers: str) -> str:
    answer = await mirror.get(path, Accept="text/html", **headers)
    text = html.unescape(re.sub(r"<wbr>|</?(span|time|code)[^>]*>", "", answer.body.decode()))
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


async def meaning(mirror: Mirror, **headers: str) -> str | int:
    """The digest that the tag means, or the status of a refusal."""
    answer = await mirror.get(TAG, **headers)
    return answer.headers["Docker-Content-Digest"] if answer.status == 200 else answer.status


async def test_a_held_tag_is_listed_until_it_follows(site, upstream, clock):
    async with site() as (mirror, _):
        await meaning(mirror)
        assert await policies(mirror) == {"held": [], "blocks": []}
        assert "Policies" not in await words(mirror)
        upstream.add_image("library/app", NEW, "1")
        assert await meaning(mirror) == FORMER.digest
        assert await meaning(mirror, Accept=OCI_MANIFEST) == FORMER.digest
        assert (await policies(mirror))["held"] == [
            {
                "name": APP,
                "familiar": "app:1",
                "registry": "docker.io",
                "repository": "library/app",
                "reference": "1",
                "served_digest": FORMER.digest,
                "upstream_digest": NEW.digest,
                "until": "2027-01-18T08:00:00Z",
            }
        ]
        text = await words(mirror)
        assert f"app:1 {FORMER.digest[:19]} {NEW.digest[:19]}" in text
        assert "To let a digest pass now: mirror release IMAGE." in text
        clock.pass_by(3 * DAY)
        assert (await policies(mirror))["held"] == [], "the next pull gets the new digest"


async def test_a_new_tag_that_is_refused_is_listed_too(site, upstream, clock):
    rule = {**RULE, "unseen": "created"}
    async with site(rule) as (mirror, token):
        assert await meaning(mirror) == 403
        (held,) = (await policies(mirror))["held"]
        assert (held["served_digest"], held["upstream_digest"]) == (None, FORMER.digest)
        assert re.search(r"app:1 refused \S+ at most", await words(mirror))
        assert "Clients are refused" in await words(mirror, f"/image?name={APP}")
        failed = json.loads((await mirror.get("/api/v1/pulls")).body)["failed"]
        assert failed[0]["reason"].endswith(f"mirror release docker.io/library/app@{FORMER.digest}")
        assert (await change(mirror, "release-held", APP, token)).status == 200
        assert (await policies(mirror))["held"] == []
        assert await meaning(mirror) == FORMER.digest


@pytest.mark.parametrize("mode", ["audit", "pin", "no rule"])
async def test_only_what_waits_is_listed(site, upstream, mode):
    rule = {**RULE, "mode": "audit"} if mode == "audit" else RULE
    async with site(RULE) as (mirror, _):
        await meaning(mirror)
        upstream.add_image("library/app", NEW, "1")
        await meaning(mirror)
    pin = [{"image": "app:1", "digest": NEW.digest}] if mode == "pin" else []
    rules = [{**RULE, "images": ["quay.io/**"]}] if mode == "no rule" else [rule]
    async with site(*rules, pin=pin) as (mirror, _):
        assert (await policies(mirror))["held"] == []
        assert (await chosen(mirror, APP))["held"] is None


async def test_blocks_are_listed_the_newest_first(site, tmp_path, upstream):
    config = configured(tmp_path / "cache", {"docker.io": upstream.url})
    block = [{"image": "docker.io/evil/**", "reason": "bait"}]
    async with site(block=block) as (mirror, token):
        await blocked(config, [f"sha256:{'5' * 64}"], "by command")
        answer = await change(mirror, "block", "app:1", token)
        assert answer.status == 200
        found = {each["target"]: each for each in (await policies(mirror))["blocks"]}
        assert found[APP]["by"] == "HTTP token"
        assert found["docker.io/evil/**:*"] == {
            "target": "docker.io/evil/**:*",
            "since": None,
            "by": "",
            "reason": "bait",
        }
        assert list(found)[-1] == "docker.io/evil/**:*"
        text = await words(mirror)
        assert re.search(r"docker\.io/evil/\*\*:\* \S \[\[block\]\] bait", text)
        assert re.search(r"sha256:555555555555 (now|\d+ s ago) \S+ by command", text)


async def test_the_status_page_does_without_records_that_cannot_be_read(site, tmp_path):
    (tmp_path / "cache" / "tags" / "cache.db" / "in the way").mkdir(parents=True)
    async with site() as (mirror, _):
        assert (await mirror.get("/api/v1/policies")).status == 503
        text = await words(mirror)
        assert "Recent pulls" in text
        assert "Policies" not in text


async def test_long_lists_are_cut_on_the_page_only(site):
    block = [{"image": f"evil/a{number}:1"} for number in range(25)]
    async with site(block=block) as (mirror, _):
        assert len((await policies(mirror))["blocks"]) == 25
        text = await words(mirror)
        assert text.count("docker.io/evil/") == 20
        assert "5 more in the API" in text


async def test_an_image_is_blocked_and_unblocked_with_the_token(site, upstream):
    async with site() as (mirror, token):
        await meaning(mirror)
        members = json.dumps({"image": "app:1", "reason": "CVE-1\nis bad"})
        answer = await send(mirror, "/api/v1/block", members, {"X-Mirror-Token": token})
        assert (answer.status, json.loads(answer.body)["blocks"][0]["target"]) == (200, APP)
        refusal = await mirror.get(TAG)
        assert refusal.status == 403
        assert "CVE-1 is bad" in json.loads(refusal.body)["errors"][0]["message"]
        for wrong in ("app:2", "evil/a b"):
            assert (await change(mirror, "unblock", wrong, token)).status == 409
        for name in ("block", "unblock", "release-held"):
            assert (await change(mirror, name, "app:1", "wrong")).status == 403
        wrong_reason = json.dumps({"image": "app:1", "reason": 7})
        answer = await send(mirror, "/api/v1/block", wrong_reason, {"X-Mirror-Token": token})
        assert answer.status == 400
        assert (await change(mirror, "unblock", "app:1", token)).status == 200
        assert await meaning(mirror) == FORMER.digest


async def test_a_list_that_cannot_be_written_is_said(site, tmp_path):
    async with site() as (mirror, token):
        (tmp_path / "cache" / "blocks.json").write_text("damaged")
        answer = await change(mirror, "block", "app:1", token)
        assert answer.status == 409
        assert "blocks.json is damaged" in json.loads(answer.body)["errors"][0]["message"]


async def test_the_page_of_an_image_says_what_holds_and_has_the_buttons(site, upstream):
    async with site() as (mirror, token):
        await meaning(mirror)
        upstream.add_image("library/app", NEW, "1")
        await meaning(mirror)
        cookie = await signed_in(mirror, token)
        path = f"/image?name={APP}"
        text = await words(mirror, path, Cookie=cookie)
        assert re.search(r"Held for [\w ]+: upstream has moved this tag to the digest below", text)
        assert f"Clients get {FORMER.digest}." in text
        assert "mirror release app:1" in text

        async def press(button: str, **fields: str) -> str:
            page = await mirror.get(path, Accept="text/html", Cookie=cookie)
            assert f'action="{button}"' in page.body.decode()
            told = {"image": APP, "proof": await proof(mirror, cookie), **fields}
            answer = await send(mirror, f"/{button}", urlencode(told), {**FORM, "Cookie": cookie})
            assert answer.status == 303
            return await words(mirror, f"/{answer.headers['Location']}", Cookie=cookie)

        said = await press("release-held")
        assert "Clients get the digest of upstream" in said
        assert "Held" not in said
        assert await meaning(mirror) == NEW.digest
        said = await press("block", reason="CVE-1")
        assert re.search(r"Blocked since \S+ by HTTP token: CVE-1\. Clients are refused", said)
        assert await meaning(mirror) == 403
        page = await mirror.get(path, Accept="text/html", Cookie=cookie)
        assert b'action="block"' not in page.body
        assert "Blocked" not in await press("unblock")
        assert await meaning(mirror) == NEW.digest


async def test_a_block_of_a_digest_or_of_the_configuration_is_said_with_its_target(site, upstream):
    upstream.add_image("library/other", FORMER, "1")
    block = [{"image": "library/*:2", "reason": "old"}]
    upstream.add_image("library/app", OTHER, "2")
    async with site() as (mirror, _):
        for name in ("app/manifests/1", "other/manifests/1", "app/manifests/2"):
            await mirror.get(f"/v2/{name}")
    async with site(block=block) as (mirror, token):
        await change(mirror, "block", "other:1", token)
        assert (await chosen(mirror, APP))["block"]["target"] == "docker.io/library/other:1"
        text = await words(mirror, f"/image?name={APP}")
        assert "as docker.io/library/other:1. Clients are refused" in text
        text = await words(mirror, "/image?name=docker.io/library/app:2")
        assert "Blocked by [[block]] in the configuration as docker.io/library/*:2: old" in text


async def test_a_pinned_tag_has_a_page(site, upstream):
    upstream.add_image("library/app", NEW, "1")
    upstream.add_image("library/app", FORMER)
    pin = [{"image": "app:1", "digest": FORMER.digest, "note": "until #1"}]
    async with site(pin=pin) as (mirror, token):
        assert await meaning(mirror) == FORMER.digest
        found = await chosen(mirror, APP)
        assert found["digest"] == FORMER.digest
        assert found["pin"] == {"image": APP, "digest": FORMER.digest, "note": "until #1"}
        text = await words(mirror, f"/image?name={APP}")
        assert f"clients that pull {APP} get {FORMER.digest}, by [[pin]]" in text
        assert f"docker pull app@{FORMER.digest} " in text
        await change(mirror, "block", "app:1", token)
        assert (await chosen(mirror, APP))["block"]["target"] == APP
        assert (await change(mirror, "unblock", "app:1", token)).status == 200
        name = f"docker.io/library/app@{FORMER.digest}"
        assert (await change(mirror, "block", name, token)).status == 200
        cookie = await signed_in(mirror, token)
        page = await mirror.get(f"/image?name={name}", Accept="text/html", Cookie=cookie)
        assert b'action="unblock"' in page.body
        assert (await change(mirror, "unblock", name, token)).status == 200


async def test_names_of_private_repositories_are_not_revealed(site, tmp_path, upstream):
    office, ann = Office(upstream), basic("ann", "secret-password")
    office.add("team/secret", FORMER, ann)
    office.add("library/app", FORMER, EVERYBODY)
    taking = {"url": upstream.url, "client_credentials": True}
    upstreams = {"docker.io": upstream.url, "ghcr.io": taking}
    config = configured(tmp_path / "cache", upstreams)
    path = "/ghcr.io/v2/team/secret/manifests/1"
    async with site(upstreams=upstreams) as (mirror, _):
        assert (await mirror.get(path, Authorization=ann)).status == 200
        assert (await mirror.get("/ghcr.io/v2/library/app/manifests/1")).status == 200
        upstream.add_image("team/secret", NEW, "1")
        office.add("team/secret", NEW, ann)
        answer = await mirror.get(path, Authorization=ann)
        assert answer.headers["Docker-Content-Digest"] == FORMER.digest
        secret, public = "ghcr.io/team/secret:1", "ghcr.io/library/a*:1"
        await blocked(config, [secret, "ghcr.io/team/sec*:*", public], "of secret")
        found = await policies(mirror)
        (held,) = found["held"]
        names = ("registry", "repository", "reference", "name", "upstream_digest")
        assert [held[each] for each in names] == ["ghcr.io", "(private)", "(private)", None, None]
        told = sorted((each["target"], each["reason"]) for each in found["blocks"])
        assert told == [("ghcr.io/(private)", "")] * 2 + [(public, "of secret")]
        await unblocked(config, [public])
        for each in ("/", "/live", "/api/v1/policies"):
            assert "secret" not in (await mirror.get(each, Accept="text/html")).body.decode()


@pytest.mark.long
async def test_a_block_by_http_counts_in_all_workers_at_once(tmp_path, upstream):
    upstream.add_image("library/app", FORMER, "1")
    process = MirrorProcess(tmp_path, {"docker.io": upstream.url}, workers=2)
    await asyncio.to_thread(process.start)
    try:
        token = create_token(tmp_path / "cache" / "control" / "token")
        control = tmp_path / "cache" / "control"
        await until(lambda: len(list(control.glob("*.sock"))) == 2)
        sockets = list(control.glob("*.sock"))

        async def statuses() -> list[int]:
            found = []
            for each in sockets:
                connector = aiohttp.UnixConnector(str(each))
                async with (
                    aiohttp.ClientSession("http://mirror", connector=connector) as session,
                    session.get(TAG) as answer,
                ):
                    found.append(answer.status)
            return found

        headers, body = {"X-Mirror-Token": token}, {"image": "app:1"}
        async with aiohttp.ClientSession(process.url, headers=headers) as session:
            for name, status in (("block", 403), ("unblock", 200)) * 3:
                async with session.post(f"/api/v1/{name}", json=body) as answer:
                    assert answer.status == 200
                assert await statuses() == [status, status]
    finally:
        await asyncio.to_thread(process.terminate)
