"""Registries that do not know the address by which clients reach them."""

from dataclasses import dataclass, field

import pytest
from aiohttp import web
from yarl import URL

from tests.fakes.content import OCI_MANIFEST
from tests.proxy.clients import ask, trusting
from tests.running import running
from tests.upstream.test_auth import serving

pytestmark = [pytest.mark.slow]

NAME = "second.test"
CLIENT = f"https://{NAME}"
UPLOADS = "/v2/team/app/blobs/uploads/"
STATE = "?_state=a%2Fb%3D"


@dataclass
class Uploads:
    """A registry without TLS that says where an upload goes on.

    ``location`` has {here} for its own address, {host} for the Host field, {path} for the path of
    the upload.  Its API is below ``base``.
    """

    location: str
    base: str = ""
    url: str = ""
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.seen.append((request.method, request.raw_path, await request.read()))
        if not request.raw_path.startswith(f"{self.base}/v2/team/app/"):
            return web.Response(status=404)
        path = f"{self.base}{UPLOADS}1{STATE}"
        here = self.url.removeprefix("http://")
        location = self.location.format(here=here, host=request.headers["Host"], path=path)
        status = 201 if request.method == "PUT" else 202
        return web.Response(status=status, headers={"Location": location})


async def push(mirror, trust) -> None:
    """A layer and a manifest, as a client does that uses the proxy only for https."""
    answer = await ask(mirror, trust, CLIENT + UPLOADS, "POST")
    for method, body in (("PATCH", b"layer"), ("PUT", b"")):
        assert answer.status == 202
        url = URL(CLIENT + UPLOADS).join(URL(answer.headers["Location"], encoded=True))
        assert url.scheme == "https"
        answer = await ask(mirror, trust, str(url), method, data=body)
    assert answer.status == 201
    manifest = {"data": b"{}", "headers": {"Content-Type": OCI_MANIFEST}}
    answer = await ask(mirror, trust, f"{CLIENT}/v2/team/app/manifests/1", "PUT", **manifest)
    assert answer.status == 201


@pytest.mark.parametrize(
    "location",
    [
        "http://{host}{path}",
        "http://{host}:80{path}",
        "http://{here}{path}",
        "http://127.0.0.1:443{path}",
        "HTTP://registry{path}",
        "http://registry.internal:5000{path}",
        "http://[fd00::1]:5000{path}",
        "https://{host}{path}",
        "https://{host}:5000{path}",
        "https://{here}{path}",
        "{path}",
    ],
)
@pytest.mark.parametrize("base", ["", "/repository/docker"])
async def test_an_upload_goes_on_where_it_began(tmp_path, location, base):
    registry = Uploads(location, base)
    async with serving(registry.answer) as registry.url:
        table = {"docker.io": "http://127.0.0.1:9", NAME: registry.url + base}
        async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
            await push(mirror, trusting(tmp_path))
    upload = f"{base}{UPLOADS}1{STATE}"
    assert registry.seen == [
        ("POST", base + UPLOADS, b""),
        ("PATCH", upload, b"layer"),
        ("PUT", upload, b""),
        ("PUT", f"{base}/v2/team/app/manifests/1", b"{}"),
    ]


async def test_a_path_that_the_registry_does_not_know_of_is_added_again(tmp_path):
    """A reverse proxy before the registry removes it from requests, but not from answers."""
    registry = Uploads(f"http://{{host}}{UPLOADS}1{STATE}", "/docker")
    async with serving(registry.answer) as registry.url:
        table = {"docker.io": "http://127.0.0.1:9", NAME: f"{registry.url}/docker"}
        async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
            await push(mirror, trusting(tmp_path))


@pytest.mark.parametrize(
    "location",
    [
        "https://storage.test/v2/bucket/1?signature=a%2Fb",
        "http://storage.test:9000/bucket/1?redirect=http://second.test/v2/",
        "https://eu.second.test/v2/team/app/blobs/uploads/1",
        f"https://{NAME}/v2/team/app/blobs/uploads/1?_state=a%2Fb",
        "http://[broken/v2/",
        "1?_state=x",
        "//storage.test/v2/x",
    ],
)
async def test_other_addresses_stay_as_the_registry_said_them(tmp_path, location):
    registry = Uploads(location.replace("{", "{{"))
    async with serving(registry.answer) as registry.url:
        table = {"docker.io": "http://127.0.0.1:9", NAME: registry.url}
        async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
            answer = await ask(mirror, trusting(tmp_path), CLIENT + UPLOADS, "POST")
    assert (answer.status, answer.headers["Location"]) == (202, location)


async def test_pages_of_the_catalogue_are_linked_in_the_same_way(tmp_path):
    links = [
        '<http://registry:5000/v2/_catalog?last=a%2Fb&n=1>; rel="next"',
        '</docker/v2/_catalog?last=a>; rel="next", <https://docs.test/v2/>; rel="help"',
    ]

    async def answer(_: web.BaseRequest) -> web.Response:
        response = web.json_response({"repositories": []})
        for link in links:
            response.headers.add("Link", link)
        return response

    async with serving(answer) as url:
        table = {"docker.io": "http://127.0.0.1:9", NAME: f"{url}/docker"}
        async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
            said = await ask(mirror, trusting(tmp_path), f"{CLIENT}/v2/_catalog?n=1")
    assert said.headers.getall("Link") == [
        '</v2/_catalog?last=a%2Fb&n=1>; rel="next"',
        '</v2/_catalog?last=a>; rel="next", <https://docs.test/v2/>; rel="help"',
    ]


def refusing(realm: str):
    """A registry without TLS that gives tokens at /token; {host} is the Host field."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": "t"})
        named = realm.format(host=request.headers["Host"])
        challenge = {"WWW-Authenticate": f'Bearer realm="{named}",service="x"'}
        return web.Response(status=401, headers=challenge)

    return answer


def realm_of(answer) -> str:
    return answer.headers["WWW-Authenticate"].split('"')[1]


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/v2/team/app/manifests/1", "{host}"),
        *(("/v2/", host) for host in ("{host}", "{host}:80", "{host}:443", "registry.lan:5000")),
    ],
)
async def test_tokens_come_by_the_connection_that_the_client_trusts(tmp_path, path, host):
    async with serving(refusing(f"http://{host}/token?a=b%2F")) as url:
        table = {"url": url, "aliases": ["registry.lan:5000"]}
        upstreams = {"docker.io": "http://127.0.0.1:9", NAME: table}
        async with running(tmp_path, upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
            trust = trusting(tmp_path)
            realm = realm_of(await ask(mirror, trust, CLIENT + path))
            assert realm == f"{CLIENT}/token?a=b%2F"
            assert (await ask(mirror, trust, realm)).body == b'{"token": "t"}'


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.test/token",  # the configuration has http for this registry
        f"http://{NAME}:5001/token",
        f"https://{NAME}/token",
        "/token",
        "http://[broken/token",
    ],
)
async def test_other_token_services_stay_as_the_registry_said_them(tmp_path, realm):
    async with serving(refusing(realm)) as url:
        upstreams = {"docker.io": "http://127.0.0.1:9", NAME: url}
        async with running(tmp_path, upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
            answer = await ask(mirror, trusting(tmp_path), f"{CLIENT}/v2/")
    assert realm_of(answer) == realm


async def test_a_client_without_tls_gets_tokens_without_tls(tmp_path):
    async with serving(refusing("http://{host}/token")) as url:
        upstreams = {"docker.io": "http://127.0.0.1:9", NAME: url}
        async with running(tmp_path, upstreams, proxy={"listen": "127.0.0.1:0"}) as mirror:
            answer = await ask(mirror, trusting(tmp_path), f"http://{NAME}/v2/")
    assert realm_of(answer) == f"http://{NAME}/token"
