"""What a client would meet at the mirror: each trouble is found by asking as it asks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from mirror import clients
from mirror.clients import Mirror as Told
from mirror.upstream.proxies import NoProxy
from tests.doctor.machine import Machine, wrongs
from tests.fakes import FakeRegistry
from tests.peers.process import free_port
from tests.running import Mirror, running

pytestmark = [pytest.mark.slow]


HUB, SECOND = "docker.io", "second.example.com"


def use(machine: Machine, url: str, *names: str) -> None:
    machine.plant_snippet(clients.podman(Told(url, names or (HUB,))))


@asynccontextmanager
async def answering(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def only_wrong(machine: Machine, url: str) -> str:
    (found,) = wrongs(await machine.examined(url))
    return found


async def test_no_process_listens(machine: Machine) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    use(machine, url)
    assert "cannot be reached" in await only_wrong(machine, url)


async def test_the_name_is_unknown(machine: Machine) -> None:
    use(machine, "http://m.invalid")
    assert "m.invalid cannot be resolved" in await only_wrong(machine, "http://m.invalid")


async def test_something_else_answers(machine: Machine) -> None:
    async def nginx(_: web.BaseRequest) -> web.Response:
        return web.Response(status=404, headers={"Server": "nginx"})

    async with answering(nginx) as url:
        use(machine, url)
        said = await only_wrong(machine, url)
    assert "something other than a mirror answers there (nginx), with status 404" in said


async def test_a_mirror_behind_a_reverse_proxy_is_still_one(
    machine: Machine, office: Mirror
) -> None:
    async def proxy(request: web.BaseRequest) -> web.Response:
        answer = await office.get(request.raw_path, request.method)
        headers = {"Server": "nginx", **{k: v for k, v in answer.headers.items() if k != "Server"}}
        return web.Response(status=answer.status, headers=headers, body=answer.body)

    async with answering(proxy) as url:
        use(machine, url)
        assert wrongs(await machine.examined(url)) == []


async def test_an_answer_in_two_segments_is_read_as_a_whole(machine: Machine) -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "no more pulls until noon"}]}'

    async def limited(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Server": "mirror"})
        response.set_status(200 if request.path == "/v2/" else 429)
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "GET":
            await response.write(body[:40])
            for _ in range(100):  # turns of the loop that the doctor runs in too
                await asyncio.sleep(0.001)
            await response.write(body[40:])
        return response

    async with answering(limited) as url:
        use(machine, url)
        assert "limits the rate: no more pulls until noon" in await only_wrong(machine, url)


async def test_something_answers_that_is_no_http(machine: Machine) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await writer.drain()
            await reader.read(100)

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        use(machine, url)
        assert "and no HTTP" in await only_wrong(machine, url)


async def test_the_mirror_asks_for_a_password(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry
) -> None:
    users = tmp_path / "users"
    users.write_text("me:$2y$05$abcdefghijklmnopqrstuuXyZ0123456789abcdefghijklmnopqrs\n")
    access = {"htpasswd_file": str(users)}
    async with running(tmp_path / "cache", {HUB: upstream.url}, access=access) as mirror:
        use(machine, mirror.url)
        said = await only_wrong(machine, mirror.url)
    assert "asks for a password, and Docker sends the one it has for Docker Hub" in said


@pytest.mark.parametrize(("taking", "right"), [(HUB, True), (SECOND, False)])
async def test_the_mirror_takes_credentials_of_clients(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry, taking: str, right: bool
) -> None:
    """Those for Docker Hub are what Docker sends; others it must not be asked for."""
    upstreams: dict[str, dict[str, object]] = {
        name: {"url": upstream.url} for name in (HUB, SECOND)
    }
    upstreams[taking]["client_credentials"] = True
    async with running(tmp_path / "cache", upstreams) as mirror:
        use(machine, mirror.url)
        report = await machine.examined(mirror.url)
    said = "\n".join(report.lines())
    if right:
        assert wrongs(report) == []
        assert "/v2/ asks for a password for Docker Hub" in said
    else:
        assert "client_credentials a separate name of the mirror (hosts)" in said
        assert len(wrongs(report)) == 1


async def test_the_mirror_is_for_another_network(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry
) -> None:
    access = {"networks": ["10.0.0.0/8"]}
    async with running(tmp_path / "cache", {HUB: upstream.url}, access=access) as mirror:
        use(machine, mirror.url)
        said = await only_wrong(machine, mirror.url)
    assert "127.0.0.1 is not in a network that may use this mirror" in said


@pytest.mark.parametrize("client", [clients.podman, clients.containerd, clients.buildkit])
async def test_the_registry_is_not_configured(machine: Machine, office: Mirror, client) -> None:
    machine.plant_snippet(client(Told(office.url, (HUB, "other.example.com"))))
    said = await only_wrong(machine, office.url)
    assert "the mirror is not configured for other.example.com" in said


async def test_upstream_is_down(machine: Machine, office: Mirror, upstream: FakeRegistry) -> None:
    await upstream.stop()
    use(machine, office.url)
    assert "the mirror does not reach upstream" in await only_wrong(machine, office.url)


async def test_upstream_limits_the_rate(
    machine: Machine, office: Mirror, upstream: FakeRegistry
) -> None:
    upstream.guard = lambda request, path: web.Response(status=429)
    use(machine, office.url)
    assert "upstream limits the rate" in await only_wrong(machine, office.url)


async def test_an_upstream_that_wants_a_login_is_no_fault_of_the_client(
    machine: Machine, office: Mirror, upstream: FakeRegistry
) -> None:
    upstream.guard = lambda request, path: web.Response(status=401)
    use(machine, office.url, SECOND)
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert "upstream wants a login" in "\n".join(report.lines())


@asynccontextmanager
async def over_tls(
    tmp_path: Path, upstream: FakeRegistry, authority: trustme.CA, name: str = "127.0.0.1"
) -> AsyncIterator[str]:
    certificate = authority.issue_cert(name)
    files = {key: tmp_path / key for key in ("tls_certificate", "tls_key")}
    certificate.cert_chain_pems[0].write_to_path(files["tls_certificate"])
    certificate.private_key_pem.write_to_path(files["tls_key"])
    server = {key: str(path) for key, path in files.items()}
    async with running(tmp_path / "cache", {HUB: upstream.url}, server=server) as mirror:
        yield mirror.url.replace("http:", "https:")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("client", ["docker", "podman"])
async def test_a_ca_that_the_client_does_not_know_is_found_and_fixed_as_it_says(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry, authority: trustme.CA, client: str
) -> None:
    async with over_tls(tmp_path, upstream, authority) as url:
        machine.plant_snippet(getattr(clients, client)(Told(url, (HUB,))))
        report = await machine.examined(url)
        (found,) = wrongs(report)
        assert "from a CA that is not trusted here" in found
        place = report.findings[-1].fix.removeprefix("copy the CA of the mirror to ")
        machine.plant({place: authority.cert_pem.bytes().decode()})
        assert wrongs(await machine.examined(url)) == []
        machine.plant({place: "no certificate"})
        assert "no CA can be read from" in await only_wrong(machine, url)


async def test_a_ca_in_hosts_toml_is_the_one_that_is_trusted(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry, authority: trustme.CA
) -> None:
    machine.plant({"/etc/office.pem": authority.cert_pem.bytes().decode()})
    async with over_tls(tmp_path, upstream, authority) as url:
        machine.plant_snippet(clients.docker_hosts(Told(url, (HUB,), ca_file="/etc/office.pem")))
        assert wrongs(await machine.examined(url)) == []


async def test_a_certificate_for_another_name_is_found(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry, authority: trustme.CA
) -> None:
    async with over_tls(tmp_path, upstream, authority, "m.lan") as url:
        place = f"/etc/containers/certs.d/{url.removeprefix('https://')}/ca.crt"
        machine.plant({place: authority.cert_pem.bytes().decode()})
        use(machine, url)
        assert "its certificate is not for 127.0.0.1" in await only_wrong(machine, url)


async def test_http_for_a_mirror_that_speaks_https_is_found(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry, authority: trustme.CA
) -> None:
    async with over_tls(tmp_path, upstream, authority) as url:
        plain = url.replace("https:", "http:")
        use(machine, plain)
        assert "speaks https, not http" in await only_wrong(machine, plain)


async def test_https_for_a_mirror_that_speaks_http_is_found(
    machine: Machine, office: Mirror
) -> None:
    url = office.url.replace("http:", "https:")
    use(machine, url)
    assert "speaks no TLS" in await only_wrong(machine, url)


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("m.lan", True), ("lan", True), (".lan", True), ("*.lan", True), ("*", True),
        ("m.lan:5000", True), ("m.lan:80", False), (".m.lan", False), ("an", False), ("", False),
        ("a.b, m.lan ", True), ("10.0.0.0/8", False),
    ],
)  # fmt: skip
def test_no_proxy_is_read_as_go_reads_it(no_proxy: str, direct: bool) -> None:
    assert NoProxy(no_proxy).covers("m.lan", 5000) is direct


def test_no_proxy_knows_networks_and_never_asks_a_proxy_for_this_machine() -> None:
    assert NoProxy("10.0.0.0/8").covers("10.1.2.3", 5000)
    assert NoProxy("fd00::/8").covers("fd00::1", 5000)
    assert not NoProxy("10.0.0.0/8").covers("11.1.2.3", 5000)
    assert NoProxy("").covers("127.0.0.1", 5000)
