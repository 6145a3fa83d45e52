"""A registry that the mirror stands in for: pulls by its own name come from the cache."""

import asyncio
import contextlib
import hashlib
import ssl

import aiohttp
import bcrypt
import pytest
import trustme

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.office import basic
from tests.proxy.clients import ask, connected, trusting
from tests.running import running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]


REPO = "team/app"
LAYER = random_bytes(3_000_000)
APP = image(LAYER, random_bytes(1000, 7))
NAME = "second.test"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def second(authority):
    """A registry that speaks TLS, at an address that no client knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with FakeRegistry(tls=context) as registry:
        registry.add_image(REPO, APP, "1")
        yield registry


@pytest.fixture
def upstreams(tmp_path, second, authority):
    ca = tmp_path / "upstream.pem"
    authority.cert_pem.write_to_path(str(ca))
    return {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": second.url, "ca_file": str(ca), "aliases": ["alias.test:8443"]},
    }


@pytest.fixture
async def office(tmp_path, upstreams):
    async with running(
        tmp_path / "cache", upstreams, proxy={"listen": "127.0.0.1:0"}, tags={"max_age": "1h"}
    ) as mirror:
        yield mirror


@pytest.fixture
def trust(tmp_path, office):
    return trusting(tmp_path / "cache")


async def pull(office, trust, name: str = NAME) -> list[str]:
    """Pull the image; what Cache-Status says of each part."""
    said = []
    for path in ("manifests/1", *(f"blobs/{digest}" for digest in APP.digests)):
        answer = await ask(office, trust, f"https://{name}/v2/{REPO}/{path}")
        assert answer.status == 200
        digest = "sha256:" + hashlib.sha256(answer.body).hexdigest()
        assert answer.headers["Docker-Content-Digest"] == digest
        said.append(answer.headers["Cache-Status"])
    return said


async def test_the_line_of_a_pull_names_the_user_of_the_proxy(tmp_path, upstreams, caplog):
    caplog.set_level("INFO")
    (tmp_path / "users").write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}")
    options = {
        "proxy": {"listen": "127.0.0.1:0"},
        "access": {"htpasswd_file": str(tmp_path / "users")},
    }
    async with running(tmp_path / "cache", upstreams, **options) as mirror:
        trust, login = trusting(tmp_path / "cache"), basic("alice", "secret")
        url = f"https://{NAME}/v2/{REPO}/manifests/1"
        for _ in range(3):  # the last one from memory
            answer = await ask(mirror, trust, url, proxy_headers={"Proxy-Authorization": login})
            assert answer.status == 200
    (line,) = (each for each in caplog.records if each.name == "mirror.access")
    assert line.getMessage().startswith(f"{NAME}/{REPO}:1  127.0.0.1 (alice)  ")


async def test_an_image_is_pulled_cold_warm_and_with_upstream_stopped(office, trust, second):
    cold = await pull(office, trust)
    assert all("fwd=miss" in said for said in cold)
    asked = second.count("blob", "GET")
    assert asked == len(APP.digests)
    assert set(await pull(office, trust)) == {"mirror; hit"}
    await second.stop()
    assert set(await pull(office, trust)) == {"mirror; hit"}
    assert (await ask(office, trust, f"https://{NAME}/v2/")).status == 200
    await second.start()
    assert second.count("blob", "GET") == asked
    figures = await office.metrics()
    counted = f'mirror_requests_total{{kind="blob",result="hit",upstream="{NAME}"}}'
    assert figures[counted] == 2 * len(APP.digests)


async def test_every_name_of_a_registry_is_answered_with_its_own_certificate(office, trust, second):
    address = second.url.removeprefix("https://")
    for name in (NAME, f"{NAME}:443", NAME.upper(), "alias.test:8443", address):
        assert await pull(office, trust, name)
    assert second.count("blob", "GET") == len(APP.digests)


async def test_what_is_cached_is_the_same_by_whatever_way(office, trust, second):
    await pull(office, trust)
    for digest in APP.digests:
        assert (await office.get(f"/v2/{NAME}/{REPO}/blobs/{digest}")).status == 200
    assert second.count("blob", "GET") == len(APP.digests)


async def test_the_same_bytes_mean_the_registry_that_was_connected_to(
    tmp_path, upstream, upstreams
):
    """What is hot is kept apart by registry, and from the mirror's own port."""
    other = image(b"another layer")
    upstream.add_image(REPO, other, "1")
    upstreams["docker.io"] = upstream.url
    cache = tmp_path / "both"
    async with running(cache, upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
        trust = trusting(cache)
        for _ in range(3):
            for name, app in ((NAME, APP), ("registry-1.docker.io", other)):
                async with connected(mirror) as raw:
                    await raw.connect(f"{name}:443")
                    await raw.start_tls(trust, name)
                    for _ in range(2):
                        line = f"GET /v2/{REPO}/manifests/{app.digest} HTTP/1.1"
                        await raw.send(f"{line}\r\nHost: {name}\r\n\r\n".encode())
                        async with limit():
                            await raw.reader.readuntil(b"\r\n\r\n")
                            assert await raw.reader.readexactly(len(app.manifest)) == app.manifest
            answer = await mirror.get(f"/v2/{REPO}/manifests/1", Host="x")
            assert answer.body == other.manifest


async def test_a_plain_http_registry_is_answered_by_its_whole_address(tmp_path, upstream):
    upstream.add_image(REPO, APP, "1")
    table = {"docker.io": "http://127.0.0.1:9", "registry.lan:5000": upstream.url}
    async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
        for _ in range(2):
            async with mirror.session.get(
                f"http://registry.lan:5000/v2/{REPO}/blobs/{APP.digests[1]}", proxy=mirror.proxy
            ) as response:
                assert await response.read() == LAYER
        assert upstream.count("blob") == 1
        async with mirror.session.get("http://elsewhere.test/", proxy=mirror.proxy) as response:
            assert response.status == 403
            assert '[upstreams."elsewhere.test:80"]' in await response.text()


async def test_a_client_that_does_not_trust_the_ca_is_told_of_in_the_log(office, caplog):
    caplog.set_level("INFO", "mirror.access")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    stranger = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=NAME)
    async with connected(office) as raw, limit():
        await raw.connect(f"{NAME}:443")
        with pytest.raises(ssl.SSLCertVerificationError):  # noqa: PT012
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    stranger.do_handshake()
                await raw.send(outgoing.read())
                incoming.write(await raw.reader.read(65536))
        await raw.send(outgoing.read())  # the alert, which asyncio's own client keeps to itself
        await raw.rest()
    async with limit():
        while not caplog.records:
            await asyncio.sleep(0.01)
    assert "mirror ca" in caplog.records[-1].detail


@pytest.mark.parametrize("name", ["other.test", None])
async def test_no_name_or_another_in_tls_gets_the_certificate_of_the_one_connected_to(
    office, trust, name
):
    trust.check_hostname = False
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, name or "")
        names = raw.writer.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", NAME),)


async def test_a_handshake_that_does_not_wait_for_the_answer_is_not_lost(office, trust):
    """A client may send its first TLS record right behind the CONNECT."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trust.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    async with connected(office) as raw, limit():
        await raw.connect(f"{NAME}:443", early=outgoing.read())
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(await raw.reader.read(65536))
        # The request goes out together with the end of the handshake.
        tls.write(b"GET /v2/ HTTP/1.1\r\nHost: second.test\r\nConnection: close\r\n\r\n")
        await raw.send(outgoing.read())
        answer = b""
        while b"\r\n\r\n" not in answer:
            try:
                answer += tls.read()
            except ssl.SSLWantReadError:
                incoming.write(await raw.reader.read(65536))
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\0" * 4096, b""])
async def test_what_is_no_tls_is_ended_and_disturbs_nobody(office, trust, garbage):
    async with connected(office) as raw:
        assert " 200 " in await raw.connect(f"{NAME}:443")
        await raw.send(garbage)
        raw.writer.write_eof()
        await raw.rest()
    assert (await ask(office, trust, f"https://{NAME}/v2/")).status == 200


async def test_who_leaves_in_the_middle_leaves_nothing_behind(office, trust, second):
    second.hold(64 * 1024)
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        path = f"/v2/{REPO}/blobs/{APP.digests[1]}"
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        await raw.reader.readuntil(b"\r\n\r\n")
        raw.writer.transport.abort()
    second.release()
    assert (await ask(office, trust, f"https://{NAME}{path}")).body == LAYER


async def test_a_body_that_breaks_off_breaks_the_connection(office, trust, second):
    second.faults.append(Fault(flip=100))
    with pytest.raises(aiohttp.ClientError):
        await ask(office, trust, f"https://{NAME}/v2/{REPO}/blobs/{APP.digests[1]}")


async def test_errors_inside_are_the_specs(office, trust):
    answer = await ask(office, trust, f"https://{NAME}/v2/{REPO}/manifests/none")
    assert answer.status == 404
    assert b"MANIFEST_UNKNOWN" in answer.body


async def test_the_mirrors_own_pages_are_not_the_registrys(office, trust, second):
    for path in ("/metrics", "/healthz", "/"):
        answer = await ask(office, trust, f"https://{NAME}{path}")
        assert answer.status == 404, "what the registry says of it"
    assert [seen.path for seen in second.seen] == ["/metrics", "/healthz", "/"]


async def test_what_an_operator_denies_is_denied_here_too(tmp_path, upstreams):
    upstreams[NAME]["deny"] = ["team/*"]
    async with running(tmp_path / "c", upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
        trust = trusting(tmp_path / "c")
        answer = await ask(mirror, trust, f"https://{NAME}/v2/{REPO}/manifests/1")
        assert answer.status == 403


async def test_one_that_is_not_enabled_is_never_contacted(tmp_path, upstreams, second):
    upstreams[NAME]["enabled"] = False
    async with running(tmp_path / "c", upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
        async with connected(mirror) as raw:
            said = await raw.connect(f"{NAME}:443")
        assert said.startswith("HTTP/1.1 403 ")
        assert "enabled = true" in said
    assert second.seen == []


async def test_nobody_is_asked_who_must_not_come_in(tmp_path, upstreams):
    access = {"networks": ["10.0.0.0/8"]}
    proxy = {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "c", upstreams, proxy=proxy, access=access) as mirror:
        async with connected(mirror) as raw:
            said = await raw.connect(f"{NAME}:443")
        assert said.startswith("HTTP/1.1 403 ")
        assert "[access] networks" in said
