"""Changes by HTTP: only with the token, only from a page of the mirror, and what they do."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest
from yarl import URL

from mirror.http.token import create_token
from tests.fakes import FakeRegistry, image, random_bytes
from tests.running import Answer, Mirror, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

APP = image(random_bytes(200_000, 1), marker="app")
OTHER = image(random_bytes(100_000, 2), marker="other")
CHANGES = ("warm", "keep", "release", "drop", "block", "unblock", "release-held")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def hub(upstream: FakeRegistry) -> FakeRegistry:
    upstream.add_image("library/app", APP, "1")
    upstream.add_image("library/other", OTHER, "1")
    return upstream


@pytest.fixture
async def token(tmp_path, mirror) -> str:
    """A token as `mirror token` makes it; the mirror runs already."""
    return await asyncio.to_thread(create_token, tmp_path / "cache" / "control" / "token")


def run_token(cache: Path, *options: str) -> str:
    command = [sys.executable, "-m", "mirror", "token", "--cache-dir", str(cache), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def send(mirror: Mirror, path: str, body: str | bytes, fields: Mapping[str, str]) -> Answer:
    url = f"{mirror.url}{path}"
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.post(url, data=body, headers=fields, allow_redirects=False) as answer,
    ):
        return Answer(answer.status, answer.headers, await answer.read())


async def change(mirror: Mirror, name: str, image: str, token: str = "") -> Answer:
    fields = {"X-Mirror-Token": token} if token else {}
    return await send(mirror, f"/api/v1/{name}", json.dumps({"image": image}), fields)


async def signed_in(mirror: Mirror, token: str) -> str:
    """The cookie of a new session."""
    answer = await send(mirror, "/login", urlencode({"token": token}), FORM)
    assert answer.status == 303
    field = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(field.split("; "))
    return field.partition(";")[0]


async def proof(mirror: Mirror, cookie: str) -> str:
    text = (await mirror.get("/images", Accept="text/html", Cookie=cookie)).body.decode()
    found = re.search(r'name="proof" value="(\w+)"', text)
    return "" if found is None else found[1]


async def cached(mirror: Mirror, *names: str) -> None:
    """Wait until exactly these images are cached."""
    async with limit():
        while True:
            found = json.loads((await mirror.get("/api/v1/images")).body)["images"]
            if [each["familiar"] for each in found] == list(names):
                return
            await asyncio.sleep(0.1)


async def test_they_are_off_until_there_is_a_token(mirror, hub):
    for name in CHANGES:
        assert (await change(mirror, name, "app:1")).status == 403
        assert (await send(mirror, f"/{name}", "image=app:1", FORM)).status == 403
    assert (await send(mirror, "/login", "token=", FORM)).status == 403
    assert b"Sign in" not in (await mirror.get("/images", Accept="text/html")).body
    assert hub.seen == []


async def test_a_wrong_token_changes_nothing(mirror, hub, token):
    for wrong in ("x", token[:-1], token.upper(), f"{token} x"):
        for name in CHANGES:
            assert (await change(mirror, name, "app:1", wrong)).status == 403
        assert (await send(mirror, "/login", urlencode({"token": wrong}), FORM)).status == 403
    assert hub.seen == []


async def test_only_the_hash_of_the_token_is_stored(tmp_path, token):
    file = tmp_path / "cache" / "control" / "token"
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token) > 40


async def test_the_log_says_what_was_changed_with_the_token(mirror, hub, token, caplog):
    for name in ("keep", "release", "block", "unblock", "warm"):
        assert (await change(mirror, name, "app:1", token)).status == 200
    await cached(mirror, "app:1")
    assert (await change(mirror, "drop", "app:1", token)).status == 200
    app, by = "docker.io/library/app:1", "HTTP token"
    assert [
        (each.getMessage(), getattr(each, "image", None) or each.target, each.by)
        for each in caplog.records
        if hasattr(each, "by")
    ] == [
        (what, app, by)
        for what in ("keeping", "keeping no longer", "blocked", "unblocked", "warming", "dropped")
    ]


@pytest.mark.long
async def test_an_image_is_pulled_ahead_and_dropped(mirror, hub, token):
    answer = await change(mirror, "warm", "app:1", token)
    assert (answer.status, json.loads(answer.body)["state"]) == (200, "pulling")
    await cached(mirror, "app:1")
    async with limit():
        while hub.count("blob", "GET") < len(APP.digests):
            await asyncio.sleep(0.05)
    await mirror.get("/v2/other/manifests/1")
    await cached(mirror, "app:1", "other:1")
    answer = await change(mirror, "drop", "docker.io/library/app:1", token)
    assert answer.status == 200
    await cached(mirror, "other:1")
    asked = hub.count("manifest", "GET")
    assert (await mirror.get("/v2/app/manifests/1")).headers["Cache-Status"] == (
        "mirror; fwd=miss; stored"
    )
    assert hub.count("manifest", "GET") == asked + 1


async def test_only_a_few_images_are_pulled_ahead_at_once(mirror, hub, token):
    hub.hold(0)
    for number in range(9):
        hub.add_image(f"team/app{number}", image(random_bytes(1000, number)), "1")
    answers = [await change(mirror, "warm", f"team/app{number}:1", token) for number in range(9)]
    assert [answer.status for answer in answers] == [200] * 8 + [409]
    assert b"8 images are being pulled: try again later" in answers[-1].body
    assert (await change(mirror, "warm", "team/app0:1", token)).status == 200
    hub.release()
    async with limit():
        while (await change(mirror, "warm", "team/app8:1", token)).status != 200:
            await asyncio.sleep(0.1)
        # A pull that connects to the mirror while the loop ends leaves an open socket.
        while any(task.get_name() == "warm" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.02)


async def test_a_kept_image_is_not_dropped_until_it_is_released(tmp_path, mirror, hub, token):
    await mirror.get("/v2/app/manifests/1")
    answer = await change(mirror, "keep", "app:1", token)
    assert json.loads(answer.body) == {"image": "docker.io/library/app:1", "kept": True}
    stats = json.loads((await mirror.get("/api/v1/stats")).body)
    assert stats["cache"]["kept_bytes"] >= len(APP.manifest)
    answer = await change(mirror, "drop", "app:1", token)
    assert answer.status == 409
    assert b"kept on the status page; release it there" in answer.body
    assert (tmp_path / "cache" / "keep").read_text() == "docker.io/library/app:1\n"
    assert (await change(mirror, "release", "app:1", token)).status == 200
    assert (await change(mirror, "drop", "app:1", token)).status == 200


async def test_what_is_kept_stays_kept_after_a_restart(tmp_path, hub):
    cache = tmp_path / "cache"
    async with running(cache, {"docker.io": hub.url}) as mirror:
        token = await asyncio.to_thread(create_token, cache / "control" / "token")
        await mirror.get("/v2/app/manifests/1")
        await change(mirror, "keep", "app:1", token)
    async with running(cache, {"docker.io": hub.url}) as mirror:
        assert (await change(mirror, "drop", "app:1", token)).status == 409


async def test_an_image_that_cannot_be_pulled_is_listed_as_failed(mirror, hub, token):
    assert (await change(mirror, "warm", "none:1", token)).status == 200
    async with limit():
        while not (failed := json.loads((await mirror.get("/api/v1/pulls")).body)["failed"]):
            await asyncio.sleep(0.1)
    assert (failed[0]["repository"], failed[0]["client"]) == ("library/none", "mirror-warm")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ('{"image": "app:1:2"}', 409, "'1:2' is not a tag"),
        ('{"image": "nvcr.example/cuda:1"}', 409, "not configured for nvcr.example"),
        ('{"image": 7}', 400, "the body must be"),
        ("[]", 400, "the body must be a JSON object"),
        ("[" * 5000, 400, "the body must be a JSON object"),
        ("x" * 10_000, 413, "at most 8192 bytes"),
    ],
)
async def test_a_wrong_request_is_refused_in_one_line(mirror, token, body, status, text):
    answer = await send(mirror, "/api/v1/warm", body, {"X-Mirror-Token": token})
    assert answer.status == status
    assert text in json.loads(answer.body)["errors"][0]["message"]


@pytest.mark.long
async def test_a_body_that_does_not_arrive_is_not_waited_for(mirror):
    address = URL(mirror.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"POST /login HTTP/1.1\r\nHost: m.lan\r\nContent-Length: 10\r\n\r\ntoken")
    async with limit():
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_form_works_with_the_session_and_its_proof_only(mirror, hub, token):
    cookie = await signed_in(mirror, token)
    right = await proof(mirror, cookie)
    other = await proof(mirror, await signed_in(mirror, token))
    await mirror.get("/v2/app/manifests/1")
    await cached(mirror, "app:1")
    fields = {**FORM, "Cookie": cookie}
    for wrong in ("", "x", right[:-1], "\udcff".encode(errors="surrogateescape")):
        body = urlencode({"image": "app:1", "proof": wrong})
        assert (await send(mirror, "/drop", body, fields)).status == 403
    body = urlencode({"image": "app:1", "proof": right})
    assert (await send(mirror, "/drop", body, FORM)).status == 403
    forged = f"mirror_session=9999999999.{'0' * 64}"
    assert (await send(mirror, "/drop", body, {**FORM, "Cookie": forged})).status == 403
    assert (await proof(mirror, "mirror_session=x")) == ""
    answer = await send(mirror, "/drop", body, fields)
    assert (answer.status, answer.headers["Location"]) == (303, "images?done=drop")
    await cached(mirror)
    assert other
    assert (await mirror.get("/drop")).status == 404


async def test_forms_lead_back_and_say_what_was_done(mirror, hub, token):
    cookie = await signed_in(mirror, token)
    await mirror.get("/v2/app/manifests/1")
    await cached(mirror, "app:1")
    name = "docker.io/library/app:1"
    body = urlencode({"image": name, "proof": await proof(mirror, cookie)})
    answer = await send(mirror, "/keep", body, {**FORM, "Cookie": cookie})
    assert answer.headers["Location"] == "image?name=docker.io%2Flibrary%2Fapp%3A1&done=keep"
    page = await mirror.get(f"/{answer.headers['Location']}", Accept="text/html", Cookie=cookie)
    assert b"it is never evicted" in page.body
    assert b'action="release"' in page.body
    without = await mirror.get(f"/{answer.headers['Location']}", Accept="text/html")
    assert b"<form" not in without.body.replace(b'action="logout"', b"")
    answer = await send(mirror, "/drop", body, {**FORM, "Cookie": cookie})
    assert answer.status == 409
    assert b"Nothing was changed" in answer.body
    answer = await send(mirror, "/logout", "", {**FORM, "Cookie": cookie})
    assert "Max-Age=0" in answer.headers["Set-Cookie"]


@pytest.mark.long
async def test_a_new_token_ends_sessions_and_revoking_ends_changes(tmp_path, mirror, token):
    cookie = await signed_in(mirror, token)
    assert await proof(mirror, cookie)
    fresh = await asyncio.to_thread(run_token, tmp_path / "cache")
    assert await proof(mirror, cookie) == ""
    assert (await change(mirror, "drop", "app:1", token)).status == 403
    assert (await change(mirror, "drop", "app:1", fresh)).status == 409  # nothing is cached
    await asyncio.to_thread(run_token, tmp_path / "cache", "--revoke")
    assert (await change(mirror, "drop", "app:1", fresh)).status == 403


async def test_a_token_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "control").write_text("in the way")
    command = [sys.executable, "-m", "mirror", "token", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 1
    assert done.stderr.startswith("mirror: ")
    assert "cannot be written" in done.stderr
