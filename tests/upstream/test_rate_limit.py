"""Silence after a 429: for as long as upstream asked, and for such requests only."""

import asyncio
import json
import re
import time
from email.utils import formatdate

import pytest
from aiohttp import web

from mirror.upstream.errors import RateLimitedError
from mirror.upstream.rate_limit import RateLimitPause, RateLimits
from tests.fakes import FakeRegistry, Fault, image
from tests.running import running
from tests.upstream.test_auth import TokenService, serving
from tests.upstream.test_breaker import warned

pytestmark = pytest.mark.slow

REPO = "library/app"
BLOB = f"/v2/{REPO}/blobs/"
AGAIN = {"Retry-After": "60"}


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("17", 17),
        ("0", 0),
        ("", 30),
        ("soon", 30),
        ("1.5", 1.5),
        ("90s", 90),
        ("1500ms", 1.5),
        ("880.092\u00b5s", 0),
        ("-5", 30),
        ("9" * 5000, 30),
        ("999999", 3600),
        (100.0, 100),
        (-100.0, 0),
    ],
)
def test_it_is_shut_for_as_long_as_upstream_asked_within_reason(retry_after, seconds):
    theirs, date = 4e9, ""  # their clock is far ahead of ours
    if isinstance(retry_after, float):
        date = formatdate(theirs, usegmt=True)
        retry_after = formatdate(theirs + retry_after, usegmt=True)
    now = [1000.0]
    gate = RateLimitPause("docker.io", "limits", clock=lambda: now[0])
    gate.check()
    assert gate.close(retry_after, date).retry_after == pytest.approx(seconds, abs=5)
    if seconds:
        now[0] += seconds - 6
        with pytest.raises(RateLimitedError):
            gate.check()
    now[0] += 12
    gate.check()


async def test_manifests_that_are_limited_leave_head_and_blobs_alone(mirror, upstream):
    """Docker Hub counts GET of manifests only."""
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    upstream.faults.append(Fault(kind="manifest", method="GET", status=429, headers=AGAIN))
    for _ in range(3):
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert upstream.count("manifest", "GET") == 1
    assert (await mirror.get(f"/v2/{REPO}/manifests/1", "HEAD")).status == 200
    for digest in app.digests:
        assert (await mirror.get(BLOB + digest)).status == 200


async def test_a_date_without_another_is_compared_with_the_clock():
    gate = RateLimitPause("docker.io", "limits")
    moment = formatdate(time.time() + 600, usegmt=True)
    assert gate.close(moment, "").retry_after == pytest.approx(600, abs=120)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {}, "denied: request exceeded pull rate limit for IP 192.0.2.1"),
        (403, {"Retry-After": "60"}, "forbidden"),
        (403, {}, "Rate exceeded"),
        (429, {}, "too many requests; retry-after: 60s"),
    ],
)
async def test_a_limit_is_known_by_its_words_too(tmp_path, upstream, status, headers, message):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    tags = {"max_age": "0s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200
        body = json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode()
        fault = Fault(kind="manifest", times=9, status=status, headers=headers, body=body)
        upstream.faults.append(fault)
        asked = upstream.count("manifest", "GET")
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).body == app.manifest, "stale"
        for digest in ("sha256:" + "0" * 64, "sha256:" + "1" * 64):
            answer = await mirror.get(f"/v2/{REPO}/manifests/{digest}")
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert upstream.count("manifest", "GET") <= asked + 1


async def test_a_name_in_a_refusal_is_no_limit(mirror, upstream):
    """Otherwise a client could silence the mirror by the name that it asks for."""
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    name = "rate-limit/too_many_requests"
    message = f"denied: {name}:TOOMANYREQUESTS is private"
    body = json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode()
    upstream.faults.append(Fault(kind="manifest", times=2, status=403, body=body))
    assert (await mirror.get(f"/v2/{name}/manifests/TOOMANYREQUESTS")).status == 403
    assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200


async def test_ghcr_tells_in_its_words_how_short_the_pause_is(mirror, upstream):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    message = "retry-after: 880.092\u00b5s, allowed: 44000/minute"
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": message}]}).encode()
    upstream.faults.append(Fault(kind="manifest", method="GET", status=429, body=body))
    assert (await mirror.get(f"/v2/{REPO}/manifests/{app.digest}")).status == 200
    assert upstream.count("manifest") == 2
    upstream.faults.append(Fault(kind="blob", status=429, body=body, times=9))
    for digest in app.digests:
        assert (await mirror.get(BLOB + digest)).status == 429
    assert upstream.count("blob") == 4, "each is asked for once more"


@pytest.mark.parametrize("password", ["", "secret"])
async def test_one_line_says_until_when_upstream_limits_requests(
    tmp_path, upstream, caplog, password
):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    again = {"Retry-After": "3600"}
    upstream.faults.append(Fault(kind="manifest", method="GET", status=429, headers=again))
    login = {"username": "me", "password": password} if password else {}
    async with running(tmp_path, {"docker.io": {"url": upstream.url, **login}}) as mirror:
        earliest = time.time()
        for _ in range(101):
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 429
        ends = (await mirror.metrics())[
            'mirror_upstream_ratelimit_until_seconds{upstream="docker.io"}'
        ]
    assert earliest + 3600 <= ends <= time.time() + 3600
    (line,) = warned(caplog)
    assert line.startswith(f"docker.io: {upstream.url} answers 429: too many requests (GET manif")
    until = re.search(r"rate limited until (\d\d:\d\d:\d\d) UTC or later", line)
    spelt = {time.strftime("%H:%M:%S", time.gmtime(earliest + 3600 + each)) for each in range(300)}
    assert until is not None
    assert until[1] in spelt
    advice = 'a login may raise the limit: set username and password of [upstreams."docker.io"]'
    assert (advice in line) is not bool(password)


async def test_requests_are_sent_again_after_the_pause_and_the_log_says_nothing_of_it(
    mirror, upstream, caplog
):
    digest = upstream.add_blob(b"layer")
    upstream.faults.append(Fault(kind="blob", status=429, headers={"Retry-After": "0"}))
    assert (await mirror.get(BLOB + digest)).status == 429
    assert (await mirror.get(BLOB + digest)).status == 200
    assert len(warned(caplog)) == 1


async def test_heads_that_are_limited_leave_get_alone(mirror, upstream):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    upstream.faults.append(Fault(kind="manifest", method="HEAD", status=429, headers=AGAIN))
    assert (await mirror.get(f"/v2/{REPO}/manifests/1", "HEAD")).status == 429
    assert (await mirror.get(f"/v2/{REPO}/manifests/{app.digest}")).status == 200


async def test_blobs_that_are_limited_leave_manifests_and_listings_alone(mirror, upstream):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    upstream.faults.append(Fault(kind="blob", status=429, headers=AGAIN))
    for digest in app.digests:
        assert (await mirror.get(BLOB + digest)).status == 429
    assert upstream.count("blob") == 1
    assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200
    assert (await mirror.get(f"/v2/{REPO}/tags/list")).status == 200


async def test_storage_that_is_limited_leaves_other_storage_alone(mirror, upstream):
    app = image(b"first", b"second")
    upstream.add_image(REPO, app, "1")
    limited, other = app.digests[:2]
    async with (
        FakeRegistry(faults=[Fault(status=429, headers=AGAIN)]) as first,
        FakeRegistry(blobs=upstream.blobs) as second,
    ):
        places = {limited: first.url, other: second.url}
        upstream.redirect_blobs_to = lambda digest: f"{places[digest]}/v2/{REPO}/blobs/{digest}"
        answer = await mirror.get(BLOB + limited)
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert (await mirror.get(BLOB + other)).status == 200


@pytest.mark.parametrize("repositories", [1, 10])
async def test_a_token_service_that_is_limited_is_asked_once(mirror, upstream, repositories):
    tokens = TokenService(status=429)
    names = [f"library/app{number}" for number in range(repositories)]
    app = image(b"layer")
    for name in names:
        upstream.add_image(name, app, "1")

    async def limited(request: web.BaseRequest) -> web.Response:
        answer = await tokens.answer(request)
        answer.headers.update(AGAIN)
        return answer

    async with serving(limited) as tokens.url:
        upstream.guard = tokens.guard()
        paths = [
            f"/v2/{name}/{kind}"
            for name in names
            for kind in (f"blobs/{app.digests[0]}", "manifests/1")
        ]
        answers = await asyncio.gather(*(mirror.get(path) for path in paths))
        for answer in answers:
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 60
            assert json.loads(answer.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
    assert len(tokens.calls) == 1


async def test_the_pauses_of_storage_with_changing_names_are_bounded():
    limits = RateLimits("docker.io")
    for number in range(1000):
        await limits.close(f"https://{number}.storage.test", "blob", "GET", "60", "")
    limits.check("https://0.storage.test", "blob", "GET")
    with pytest.raises(RateLimitedError, match=r"999\.storage\.test answers 429"):
        limits.check("https://999.storage.test", "blob", "GET")


# What several mirrors tell each other.

MANIFEST = ("https://hub.test", "manifest", "GET")


class Shared(dict[str, tuple[str, float]]):
    """The state that several mirrors share; it forgets nothing by itself."""

    asked = 0

    async def lookup(self, name: str) -> tuple[str, float] | None:
        self.asked += 1
        await asyncio.sleep(0)
        return self.get(name)

    async def put(self, name: str, value: str, ttl: float) -> None:
        self[name] = value, ttl

    async def forget(self, name: str) -> None:
        del self[name]


async def test_an_entry_that_never_expires_silences_an_upstream_for_an_hour_and_once():
    now, shared = [0.0], Shared()
    mine, other = (RateLimits("hub", "", shared, lambda: now[0]) for _ in range(2))
    await other.close(*MANIFEST, "60", "")
    ((name, (mark, left)),) = shared.items()
    assert left == 60
    shared[name] = mark, 1e9
    assert await mine.learn(*MANIFEST) == 3600
    with pytest.raises(RateLimitedError):
        mine.check(*MANIFEST)
    for limits, over in ((other, 61.0), (mine, 3601.0), (mine, 1e6)):
        now[0] = over
        assert await limits.learn(*MANIFEST) == 0
        limits.check(*MANIFEST)
    await other.close(*MANIFEST, "60", "")
    now[0] += 1
    assert await mine.learn(*MANIFEST) == 60  # another 429


async def test_the_shared_state_is_asked_once_a_second_and_not_during_a_pause():
    now, shared = [0.0], Shared()
    mine, other = (RateLimits("hub", "", shared, lambda: now[0]) for _ in range(2))
    for _ in range(3):
        now[0] += 1
        await asyncio.gather(*(mine.learn(*MANIFEST) for _ in range(10)))
    assert shared.asked == 3
    await other.close(*MANIFEST, "60", "")
    for _ in range(60):
        now[0] += 1
        await mine.learn(*MANIFEST)
    assert shared.asked == 4


async def test_a_retry_after_of_nothing_is_not_shared():
    shared = Shared()
    await RateLimits("hub", "", shared).close(*MANIFEST, "0", "")
    assert not shared
