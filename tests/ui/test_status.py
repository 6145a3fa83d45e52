"""The pages for people, as bytes: who gets them, what they say, that nothing in them is alive."""

import asyncio
import base64
import contextlib
import html
import json
import re
import time
from dataclasses import replace

import aiohttp
import bcrypt
import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.peers.process import free_port
from tests.running import Mirror, eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]
CLOCK = r"(\d+\s\w+, )?\d\d:\d\d"  # with the date, if that is another day


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
KIB = 1024


async def page(mirror: Mirror, path: str = "/", **headers: str) -> str:
    answer = await mirror.get(path, Accept=BROWSER, **headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return answer.body.decode()


def words(text: str) -> str:
    """What a reader sees of a page."""
    text = re.sub(r"<(script|style|svg).*?</\1>", "", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<wbr>|</?(span|time)[^>]*>", "", text))
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def figure(text: str, name: str) -> str:
    found = re.search(rf'id="{name}">([^<]*)<', text)
    assert found is not None
    return found[1].replace("\N{NO-BREAK SPACE}", " ")


def rows(text: str, heading: str) -> list[str]:
    """The lines of the table below a heading."""
    below = text.partition(f">{heading}<")[2].partition("</section>")[0].partition("<tbody")[2]
    return [words(row) for row in re.findall(r"<tr.*?</tr>", below, re.DOTALL)]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html"),
        ("TEXT/HTML", "text/html"),
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("application/json", "text/plain"),
        ("text/html;q=0, */*", "text/plain"),
    ],
)
async def test_browsers_get_a_page_and_others_plain_text(mirror, accept, kind):
    answer = await mirror.get("/", Accept=accept)
    assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert answer.headers["Vary"] == "Accept"
    assert (await mirror.get("/", "HEAD", Accept=accept)).body == b""


@pytest.mark.usefixtures("one_day")
async def test_it_says_what_was_done(tmp_path, upstream):
    app = image(random_bytes(300 * KIB), random_bytes(100 * KIB, seed=1))
    upstream.add_image("library/app", app, "1")
    upstream.add_image("team/tool", image(random_bytes(900 * KIB, seed=2)), "2")
    told = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}
    upstream.faults.append(Fault(kind="manifest", times=9, headers=told))
    async with running(
        tmp_path / "cache",
        {"docker.io": upstream.url, "quay.io": upstream.url},
        cache={"max_size": "4MiB"},
    ) as mirror:
        before = words(await page(mirror))
        assert "No pulls yet." in before
        assert "No requests in this time." in before
        for _ in range(4):
            await mirror.get("/v2/app/manifests/1", User_Agent="docker/28.0")
            for digest in app.digests:
                await mirror.get(f"/v2/app/blobs/{digest}", User_Agent="docker/28.0")
        tool = await mirror.get("/quay.io/v2/team/tool/manifests/2", User_Agent="skopeo/1")
        assert tool.status == 200
        await eventually(mirror, "mirror_cache_objects", 5)
        text = await page(mirror)
    assert figure(text, "hit-rate") == "70.6 %"  # 12 of 17 requests
    assert figure(text, "saved") == figure(text, "saved-today") == "1.2 MiB"
    assert figure(text, "cache-used") == "412 KiB"
    assert "of 4 MiB, 5 objects" in words(text)
    hub, quay = rows(text, "Upstreams")
    assert re.fullmatch(
        r"docker.io default up (\d+ s ago|now) 76 of 100 left 16 75.0 % 1.2 MiB", hub
    )
    assert quay.startswith("quay.io up")
    assert "Not asked yet: mcr.microsoft.com, ghcr.io" in words(text)
    second, first = (
        re.sub(r" (\d+ s ago|now) ", " ", f" {row} ").strip() for row in rows(text, "Recent pulls")
    )
    assert re.fullmatch(r"app:1 4\W Docker miss 1.6 MiB 75.0 % [\d.]+ m?s", first)
    assert re.fullmatch(r"quay.io/team/tool:2 Skopeo miss \d+ B 0 % [\d.]+ m?s", second)
    assert rows(text, "Most pulled") == [
        "app:1 4\N{MULTIPLICATION SIGN}",
        "quay.io/team/tool:2 1\N{MULTIPLICATION SIGN}",
    ]
    assert rows(text, "Largest") == ["quay.io/team/tool:2 900 KiB", "app:1 400 KiB"]
    assert [row.split()[0] for row in rows(text, "Longest unused")] == [
        "app:1",
        "quay.io/team/tool:2",
    ]


async def test_what_was_evicted_is_no_longer_called_large(tmp_path, upstream):
    for number in range(3):
        app = image(random_bytes(2000, seed=number))
        padding = b', "annotations": {"padding": "%s"}}' % (b"x" * 1_000_000)
        padded = replace(app, manifest=app.manifest[:-1] + padding)
        upstream.add_image("library/app", padded, str(number))
    async with running(
        tmp_path / "cache", {"docker.io": upstream.url}, cache={"max_size": "8MiB"}
    ) as mirror:
        for number in range(3):
            await mirror.get(f"/v2/app/manifests/{number}")
        assert len(rows(await page(mirror), "Largest")) == 3
        blob = upstream.add_blob(random_bytes(5_500_000, seed=9))
        await mirror.get(f"/v2/app/blobs/{blob}")
        text = await page(mirror)
        assert len(rows(text, "Most pulled")) == 3
        assert len(rows(text, "Largest")) == len(rows(text, "Longest unused")) == 1


async def test_what_is_being_filled_is_seen_with_everybody_who_waits(tmp_path):
    async with FakeRegistry() as upstream:
        upstream.hold(1 << 20)
        digest = upstream.add_blob(random_bytes(8 << 20))
        async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
            pulls = [
                asyncio.create_task(mirror.get(f"/v2/team/app/blobs/{digest}")) for _ in range(2)
            ]
            async with limit():
                while "2 clients waiting" not in (text := words(await page(mirror, "/live"))):
                    await asyncio.sleep(0.1)
            assert re.search(r"team/app 1 layer \S+ \w+ of 8 MiB", text)
            for pull in pulls:
                pull.cancel()
            await asyncio.gather(*pulls, return_exceptions=True)


async def test_the_layers_of_an_image_are_one_download(tmp_path):
    async with FakeRegistry() as upstream:
        upstream.hold(1 << 20)
        digests = [upstream.add_blob(random_bytes(size << 20, size)) for size in (8, 4)]
        async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
            pulls = [
                asyncio.create_task(mirror.get(f"/v2/team/app/blobs/{digest}"))
                for digest in digests
            ]
            async with limit():
                while "2 layers" not in (text := words(await page(mirror, "/live"))):
                    await asyncio.sleep(0.1)
            assert re.search(r"team/app 2 layers \S+ \w+ of 12 MiB .*1 client waiting", text)
            for pull in pulls:
                pull.cancel()
            await asyncio.gather(*pulls, return_exceptions=True)


async def test_a_hundred_open_tabs_cost_one(mirror):
    began = time.monotonic()
    pages = await asyncio.gather(*(page(mirror, "/live") for _ in range(100)))
    seconds = time.monotonic() - began
    assert len({re.sub(r"<time.*?</time>", "", each) for each in pages}) == 1
    assert len(set(pages)) <= 2 + seconds / 0.5, "it is made again after half a second"


async def test_an_upstream_in_trouble_is_called_that(tmp_path, upstream):
    await upstream.stop()
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        await mirror.get("/v2/app/manifests/1")
        assert "docker.io default no answer" in rows(await page(mirror), "Upstreams")[0]
        await upstream.start()
        upstream.faults.append(Fault(kind="manifest", status=429, headers={"Retry-After": "60"}))
        await mirror.get("/v2/app/manifests/1")
        assert "docker.io default rate limited" in rows(await page(mirror), "Upstreams")[0]


def troubles(text: str) -> str:
    """What the page says before anything else."""
    return words(text.partition('aria-label="Troubles">')[2].partition("</section>")[0])


async def test_troubles_come_first_with_cause_and_remedy_and_go_when_they_end(tmp_path, upstream):
    upstream.add_image("library/app", image(b"layer"), "1")
    tags = {"max_age": "0s", "negative_max_age": "0s"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, tags=tags) as mirror:
        await mirror.get("/v2/app/manifests/1")
        assert troubles(await page(mirror)) == ""
        await upstream.stop()
        await mirror.get("/v2/app/manifests/1")
        text = await page(mirror)
        assert text.index('id="problems"') < text.index('id="hit-rate"')
        assert re.search(
            r"docker.io: http://\S+ does not answer cannot connect to \S+ \(connection refused\) "
            r"What to do: check the network, DNS, and the address; cached images are still served. "
            r"Since " + CLOCK,
            troubles(text),
        )
        assert "tags may be outdated" not in troubles(text), "it follows from the other"
        plain = (await mirror.get("/")).body.decode()
        assert f"docker.io: {upstream.url} does not answer: cannot connect" in plain
        assert plain.index("does not answer") < plain.index("Serves")
        told = json.loads((await mirror.get("/api/v1/problems")).body)["problems"]
        assert [each["title"].startswith("docker.io: http://") for each in told] == [True]
        await upstream.start()
        async with limit():
            while troubles(await page(mirror)):
                await mirror.get("/v2/app/manifests/1")
                await asyncio.sleep(0.1)


async def test_a_rate_limit_is_said_with_its_end(mirror, upstream):
    upstream.faults.append(Fault(kind="manifest", status=429, headers={"Retry-After": "600"}))
    await mirror.get("/v2/app/manifests/1")
    text = troubles(await page(mirror))
    assert text.startswith("docker.io limits requests")
    assert re.search(f"Since {CLOCK}, until {CLOCK} or later", text)
    assert 'set username and password of [upstreams."docker.io"]' in text


async def test_a_limit_that_is_over_is_no_trouble_any_more(mirror, upstream):
    upstream.faults.append(Fault(kind="manifest", status=429, headers={"Retry-After": "1"}))
    await mirror.get("/v2/app/manifests/1")
    async with limit():
        while troubles(await page(mirror)):
            await asyncio.sleep(0.1)


async def test_a_refused_login_names_the_key(tmp_path, upstream):
    def guard(request: web.BaseRequest, kind: str) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="it"'})

    upstream.guard = guard
    table = {"url": upstream.url, "username": "ci", "password": "wrong"}
    async with running(tmp_path / "cache", {"docker.io": table}) as mirror:
        await mirror.get("/v2/app/manifests/1")
        text = troubles(await page(mirror))
    assert text.startswith("docker.io refuses the mirror's login")
    assert 'correct username and password of [upstreams."docker.io"]' in text
    assert "wrong" not in text


async def test_a_lack_of_room_and_wrong_bytes_are_troubles(tmp_path, upstream):
    large = upstream.add_blob(random_bytes(20 << 20))
    small = {"max_size": "16MiB"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, cache=small) as mirror:
        await mirror.get(f"/v2/team/app/blobs/{large}")
        text = troubles(await page(mirror))
        assert "Content finds no room in the cache docker.io/team/app: no room for 20.0" in text
        assert "raise [cache] max_size" in text
        wrong = upstream.add_blob(random_bytes(1000, seed=2))
        upstream.faults.append(Fault(times=100, flip=10))
        with contextlib.suppress(aiohttp.ClientError):  # if a part of it had been sent
            await mirror.get(f"/v2/team/app/blobs/{wrong}")
        text = troubles(await page(mirror))
    assert f"docker.io sent wrong bytes bytes that are not {wrong[:19]}" in text


async def test_stale_tags_are_a_trouble_where_nothing_else_explains_them(tmp_path, upstream):
    upstream.add_image("library/app", image(b"layer"), "1")
    tags = {"max_age": "0s"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, tags=tags) as mirror:
        await mirror.get("/v2/app/manifests/1")
        upstream.faults.append(Fault(kind="manifest", times=100, status=500))
        await mirror.get("/v2/app/manifests/1")
        assert "docker.io: tags may be outdated" in troubles(await page(mirror))


@pytest.mark.long
async def test_a_password_file_that_cannot_be_read_is_a_trouble(tmp_path, upstream):
    file = tmp_path / "htpasswd"
    file.write_bytes(b"ann:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    login = "Basic " + base64.b64encode(b"ann:secret").decode()
    access = {"htpasswd_file": str(file)}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, access=access) as mirror:
        file.write_text("no hash")
        async with limit():
            while not (text := troubles(await page(mirror, Authorization=login))):
                await asyncio.sleep(0.1)
        assert text.startswith("The password file cannot be read; the previous users stay line 1")
        file.unlink()


async def test_the_reason_of_a_failed_pull_is_kept_from_others_where_it_is_private(
    tmp_path, upstream
):
    def guard(request: web.BaseRequest, kind: str) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="it"'})

    upstream.guard = guard
    deny = {"url": upstream.url, "deny": ["hidden/**"]}
    taking = {"url": upstream.url, "client_credentials": True}
    login = {"Authorization": "Basic " + base64.b64encode(b"ann:secret").decode()}
    async with running(
        tmp_path / "cache", {"docker.io": upstream.url, "ghcr.io": taking, "quay.io": deny}
    ) as mirror:
        for path in ("team/secret-1", "ghcr.io/team/secret-2", "quay.io/hidden/secret-3"):
            for headers in ({}, login):
                for rest in ("manifests/secret-tag", f"blobs/sha256:{'5' * 64}"):
                    answer = await mirror.get(f"/v2/{path}/{rest}", **headers)
                    assert answer.status in {401, 403}
        pages = ("/", "/live", "/images", "/api/v1/pulls", "/api/v1/stats", "/api/v1/images")
        for each in pages:
            text = (await mirror.get(each, Accept=BROWSER)).body.decode()
            assert "secret" not in text, each
        failed = json.loads((await mirror.get("/api/v1/pulls")).body)["failed"]
    assert {each["repository"] for each in failed} == {"(private)"}
    # The first request of a client that has a login asks only how to log in.
    assert {
        each["registry"]: each["times"] for each in failed if each["registry"] == "ghcr.io"
    } == {"ghcr.io": 2}


async def test_a_ledger_in_trouble_is_said(tmp_path, upstream):
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "ledger").write_text("in the way")
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        assert "Figures are not being written: " in words(await page(mirror))


@pytest.mark.parametrize("path", ["/", "/live", "/clients"])
async def test_nothing_that_others_wrote_is_alive(mirror, upstream, path):
    upstream.add_image("library/app", image(b"layer"), "1")
    evil = '"><script>alert(1)</script>'
    await mirror.get("/v2/app/manifests/1", User_Agent=evil)
    text = await page(mirror, f"{path}?client=%22%3E%3Cscript%3E", Host=evil)
    assert "<script>" not in text
    assert "style=" not in text
    assert not re.search(r"\son\w+=", text)


@pytest.mark.parametrize("path", ["/", "/clients", "/status.js"])
async def test_the_browser_is_told_to_run_nothing_but_the_script(mirror, path):
    answer = await mirror.get(path, Accept=BROWSER)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_what_the_page_needs_may_be_kept_as_long_as_it_is_the_same(mirror):
    text = await page(mirror)
    for name, kind in (("status.css", "text/css"), ("status.js", "text/javascript")):
        (address,) = re.findall(rf'"({name}\?\w+)"', text)
        answer = await mirror.get(f"/{address}")
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "max-age" in answer.headers["Cache-Control"]
        assert (await mirror.get(f"/{name}")).headers["Cache-Control"] == "no-cache"
    assert (await mirror.get("/status.svg")).headers["Content-Type"].startswith("image/svg+xml")


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("docker", '"registry-mirrors": [ "https://mirror.example.com" ]'),
        ("containerd", '[host."https://mirror.example.com"]'),
        ("podman", 'location = "mirror.example.com/docker.io"'),
        ("buildkit", 'mirrors = ["mirror.example.com/docker.io"]'),
        ("k3s", '- "https://mirror.example.com"'),
        ("docker-containerd", "/etc/docker/certs.d/docker.io/hosts.toml"),
        ("no such client", '"registry-mirrors": [ "https://mirror.example.com" ]'),
    ],
)
async def test_clients_are_pointed_at_the_address_where_the_reader_is(
    tmp_path, upstream, client, expected
):
    async with running(
        tmp_path / "cache",
        {"docker.io": upstream.url},
        server={"trusted_proxies": ["127.0.0.1"]},
    ) as mirror:
        text = await page(
            mirror,
            f"/clients?client={client.replace(' ', '+')}",
            X_Forwarded_For="192.0.2.1",
            X_Forwarded_Proto="https",
            X_Forwarded_Host="mirror.example.com",
        )
    assert expected in words(text)


@pytest.mark.parametrize("host", ["mirror.example.com:5000", "[2001:db8::1]:5000"])
async def test_where_the_mirror_is_a_proxy_too_its_port_is_named(tmp_path, upstream, host):
    proxy = {"listen": f"127.0.0.1:{(port := free_port())}"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, proxy=proxy) as mirror:
        text = words(await page(mirror, "/clients?client=docker-proxy", Host=host))
    assert f'"https-proxy": "http://{host.removesuffix("5000")}{port}"' in text


async def test_a_host_that_no_file_could_name_is_not_put_into_one(mirror):
    text = await page(mirror, "/clients", Host="[bad")
    assert '"registry-mirrors": [ "http://localhost" ]' in words(text)


async def test_who_may_not_pull_may_not_look_either(tmp_path, upstream):
    access = {"networks": ["192.0.2.0/24"]}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, access=access) as mirror:
        for path in ("/", "/live", "/clients", "/status.js"):
            assert (await mirror.get(path, Accept=BROWSER)).status == 403


@pytest.mark.usefixtures("one_day")
async def test_plain_text_has_the_figures_too(mirror, upstream):
    app = image(b"layer")
    upstream.add_image("library/app", app, "1")
    for _ in range(2):
        await mirror.get("/v2/app/manifests/1")
    text = (await mirror.get("/")).body.decode()
    assert "docker.io          up" in text
    saved = f"{len(app.manifest)} B"
    assert f"Hit rate 50.0 %, saved {saved} today, {saved} in all" in text
