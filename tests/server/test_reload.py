"""Another configuration under a mirror that serves: what changes, what goes on, what stays."""

import asyncio
import operator
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from pydantic import BaseModel

from mirror.config import Config
from mirror.config.changes import FIXED
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.office import Office, basic
from tests.running import Mirror, configured, eventually, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("log")]


MIB = 1 << 20
REPO = "library/app"
BLOB = f"/v2/{REPO}/blobs/"
APP = image(b"layer")
TAG = f"/v2/{REPO}/manifests/1"
HUB = "docker.io"


@pytest.fixture
async def other():
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def reload(tmp_path, mirror: Mirror):
    """Has the mirror go by another configuration of the same cache."""

    async def change(upstreams, **sections) -> None:
        await mirror.reload(configured(tmp_path / "cache", upstreams, **sections))

    return change


Reload = Callable[..., Awaitable[None]]


# What is under way.


async def test_a_fill_goes_on_and_whoever_comes_afterwards_reads_along(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload
):
    upstream.hold(2 * MIB)
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    other.add_blob(data)
    first = asyncio.create_task(mirror.get(BLOB + digest))
    await until(lambda: upstream.sent[digest] > MIB)
    await reload({HUB: other.url})
    joining = asyncio.create_task(mirror.get(BLOB + digest))
    await eventually(mirror, "mirror_clients_waiting", 2)
    upstream.release()
    second = await joining
    assert second.body == (await first).body == data
    assert "collapsed" in second.headers["Cache-Status"]
    assert upstream.sent[digest] == len(data)
    assert other.sent[digest] == 0


async def test_a_fill_that_breaks_off_after_the_reload_goes_on_under_the_old_settings(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload
):
    upstream.hold(2 * MIB)
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults = [Fault(reset=6 * MIB)]
    pull = asyncio.create_task(mirror.get(BLOB + digest))
    await until(lambda: upstream.sent[digest] > MIB)
    await reload({HUB: other.url})
    upstream.release()
    assert (await pull).body == data
    assert upstream.seen[-1].headers.get("Range", "").startswith("bytes="), "it goes on"


async def test_sessions_of_an_upstream_are_closed_when_its_last_request_is_over(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload
):
    upstream.hold(2 * MIB)
    digest = upstream.add_blob(random_bytes(4 * MIB))
    pull = asyncio.create_task(mirror.get(BLOB + digest))
    await until(lambda: upstream.sent[digest] > MIB)
    await reload({HUB: other.url})
    assert upstream.connections > 0
    upstream.release()
    assert (await pull).status == 200
    await until(lambda: upstream.connections == 0)


async def test_what_stays_as_it_is_keeps_its_connections(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    upstream.add_image(REPO, APP, "1")
    await mirror.get(TAG)
    before = upstream.accepted
    await reload({HUB: {"url": upstream.url, "allow": ["library/*"]}}, tags={"max_age": "0s"})
    await mirror.get(TAG)
    assert upstream.accepted == before


async def test_an_upstream_that_asked_for_silence_is_left_alone_still(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    upstream.faults = [Fault(kind="manifest", status=429, headers={"Retry-After": "60"})]
    assert (await mirror.get(TAG)).status == 429
    await reload({HUB: upstream.url}, tags={"negative_max_age": "1s"})
    assert (await mirror.get(TAG)).status == 429
    assert upstream.count("manifest") == 1


@pytest.mark.long
async def test_many_reloads_under_load_leave_nothing_behind(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    upstream.add_image(REPO, APP, "1")
    digests = [upstream.add_blob(random_bytes(256 * 1024, seed)) for seed in range(24)]

    def held() -> tuple[int, int, int]:
        files = len(list(Path("/proc/self/fd").iterdir()))
        return files, threading.active_count(), len(asyncio.all_tasks())

    async def turn(number: int) -> None:
        pulls = [mirror.get(TAG) for _ in range(8)] + [mirror.get(BLOB + digests[number])]
        table = {"url": upstream.url, "max_rate": f"{100 + number}MiB"}
        answers = await asyncio.gather(reload({HUB: table}), *pulls)
        assert all(answer and answer.status == 200 for answer in answers[1:])

    for number in range(8):  # pools of threads fill up when there is work for more of them
        await turn(number)
    before = held()
    for number in range(8, 24):
        await turn(number)
    more = (3, 10, 3)
    await until(lambda: all(map(operator.le, held(), map(operator.add, before, more))))
    assert upstream.count("blob") == len(digests)


# What changes.


async def test_upstreams_come_and_go(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload
):
    other.add_image("team/app", APP, "1")
    path = "/v2/other.example.com/team/app/manifests/1"
    assert (await mirror.get(path)).status == 403
    await reload({HUB: upstream.url, "other.example.com": other.url})
    assert (await mirror.get(path)).body == APP.manifest
    up = 'mirror_upstream_up{upstream="other.example.com"}'
    assert (await mirror.metrics())[up] == 1
    await reload({HUB: upstream.url})
    assert (await mirror.get(path)).status == 403
    assert up not in await mirror.metrics()


async def test_another_url_is_asked_from_the_next_request_on(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload
):
    newer = image(b"another layer")
    upstream.add_image(REPO, APP, "1")
    other.add_image(REPO, newer, "1")
    assert (await mirror.get(TAG)).body == APP.manifest
    await reload({HUB: other.url})
    assert (await mirror.get(TAG)).body == newer.manifest


async def test_a_hot_answer_is_not_given_where_it_is_denied_now(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    upstream.add_image(REPO, APP, "1")
    for _ in range(3):
        assert (await mirror.get(TAG)).status == 200
    await reload({HUB: {"url": upstream.url, "deny": ["library/*"]}})
    for _ in range(2):
        assert (await mirror.get(TAG)).status == 403
    await reload({HUB: upstream.url})
    assert (await mirror.get(TAG)).status == 200


async def test_the_rules_for_clients_hold_for_connections_that_are_open(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    upstream.add_image(REPO, APP, "1")
    reader, writer = await asyncio.open_connection(*mirror.url.removeprefix("http://").split(":"))

    async def status() -> int:
        writer.write(f"GET {TAG} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        async with limit():
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
        return int(head.split()[1])

    assert [await status() for _ in range(3)] == [200, 200, 200]
    await reload({HUB: upstream.url}, access={"networks": ["192.0.2.0/24"]})
    assert [await status() for _ in range(2)] == [403, 403]
    await reload({HUB: upstream.url})
    assert [await status() for _ in range(3)] == [200, 200, 200]
    writer.close()


async def test_a_new_password_is_used_from_the_next_request_on(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload, tmp_path
):
    def guard(request, _path):
        challenge = {"WWW-Authenticate": "Basic realm=r"}
        known = request.headers.get("Authorization") == aiohttp.encode_basic_auth("me", "new")
        return None if known else web.Response(status=401, headers=challenge)

    upstream.add_image(REPO, APP, "1")
    upstream.guard = guard
    file = tmp_path / "password"
    table = {"url": upstream.url, "username": "me", "password_file": str(file)}
    file.write_text("old")
    await reload({HUB: table})
    assert (await mirror.get(TAG)).status == 401
    file.write_text("new")
    await reload({HUB: table})
    assert (await mirror.get(TAG)).body == APP.manifest


async def test_a_smaller_cache_evicts_at_once(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    digests = [upstream.add_blob(random_bytes(4 * MIB, seed)) for seed in range(4)]
    for digest in digests:
        await mirror.get(BLOB + digest)
    await eventually(mirror, "mirror_cache_objects", 4)
    await reload({HUB: upstream.url}, cache={"max_size": "12MiB"})
    await eventually(mirror, "mirror_cache_objects", 2)
    await eventually(mirror, "mirror_cache_max_bytes", 12 * MIB)


async def test_more_downloads_at_once_let_in_who_waits(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
):
    await reload({HUB: upstream.url}, limits={"downloads": 1})
    upstream.faults = [Fault(stall=1024)]
    stalled = upstream.add_blob(random_bytes(MIB, 1))
    other = upstream.add_blob(random_bytes(MIB, 2))
    first = asyncio.create_task(mirror.get(BLOB + stalled))
    await until(lambda: upstream.count("blob") == 1)
    second = asyncio.create_task(mirror.get(BLOB + other))
    await asyncio.sleep(0.05)
    assert upstream.count("blob") == 1
    await reload({HUB: upstream.url}, limits={"downloads": 2})
    assert (await second).status == 200
    first.cancel()


async def test_another_certificate_is_shown_to_connections_to_come(tmp_path, upstream):
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    def issued(name: str) -> dict[str, str]:
        made = authority.issue_cert("localhost", "127.0.0.1", common_name=name)
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        return {
            "tls_certificate": str(tmp_path / f"{name}.crt"),
            "tls_key": str(tmp_path / f"{name}.key"),
        }

    async def shown(mirror: Mirror) -> str:
        host, _, port = mirror.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=trust)
        found = writer.get_extra_info("peercert")
        writer.close()
        return next(pair[0][1] for pair in found["subject"] if pair[0][0] == "commonName")

    old, new = issued("old"), issued("new")
    async with running(tmp_path / "cache", {HUB: upstream.url}, server=old) as mirror:
        assert await shown(mirror) == "old"
        await mirror.reload(configured(tmp_path / "cache", {HUB: upstream.url}, server=new))
        assert await shown(mirror) == "new"


# What keeps it from changing.


async def test_what_cannot_be_used_leaves_everything_as_it_was(
    mirror: Mirror, upstream: FakeRegistry, other: FakeRegistry, reload: Reload, tmp_path
):
    upstream.add_image(REPO, APP, "1")
    no_certificate = tmp_path / "ca.pem"
    no_certificate.write_text("none")
    with pytest.raises(UserError, match="ca_file"):
        await reload(
            {HUB: upstream.url, "x.example.com": {"url": other.url, "ca_file": str(no_certificate)}}
        )
    with pytest.raises(UserError, match="htpasswd"):
        await reload({HUB: other.url}, access={"htpasswd_file": str(no_certificate)})
    assert (await mirror.get(TAG)).body == APP.manifest
    assert other.seen == []


# Every key.

#: What only the first of several processes goes by; tests/e2e/test_workers.py.
_OF_THE_FIRST_PROCESS = {("server", "worker_timeout")}
_READ_AT_THE_STOP = {("server", "lame_duck")}


def recording(table: BaseModel, place: tuple[str, ...], seen: set[tuple[str, ...]]) -> BaseModel:
    """The same table, which notes in ``seen`` which of its keys is asked for."""
    kind = type(table)

    class Recording(kind):  # type: ignore[misc, valid-type]  # a base known at run time
        def __getattribute__(self, name: str) -> object:
            if name in kind.model_fields:
                seen.add((*place, name))
            return super().__getattribute__(name)

    return Recording.model_construct(**{key: getattr(table, key) for key in kind.model_fields})


def recorded(config: Config, seen: set[tuple[str, ...]]) -> Config:
    tables = {
        section: recording(table, (section,), seen)
        for section in Config.model_fields
        if isinstance(table := getattr(config, section), BaseModel)
    }
    upstreams = {
        name: recording(upstream, ("upstreams",), seen)
        for name, upstream in config.upstreams.items()
    }
    changed = config.model_copy(update={**tables, "upstreams": upstreams})
    whole = recording(changed, (), seen)
    assert isinstance(whole, Config)
    return whole


async def test_every_key_takes_effect_by_a_reload_or_is_known_to_need_a_restart(tmp_path, upstream):
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    server = {"tls_certificate": str(tmp_path / "pem"), "tls_key": str(tmp_path / "pem")}
    (tmp_path / "secret").write_text("s" * 32)
    cluster = {
        "objects": "s3://images",
        "endpoint": "http://127.0.0.1:1",
        "secret_file": str(tmp_path / "secret"),
        "advertise": "http://127.0.0.1:1",
        "peers": ["http://127.0.0.1:1"],
    }
    sections = {"server": server, "proxy": {"listen": "127.0.0.1:0"}, "cluster": cluster}
    seen: set[tuple[str, ...]] = set()
    table = {"url": upstream.url, "username": "me", "password": "secret"}
    config = configured(tmp_path / "cache", {HUB: upstream.url}, **sections)
    later = configured(tmp_path / "cache", {HUB: table}, **sections)
    async with running(tmp_path / "cache", {HUB: upstream.url}, **sections) as mirror:
        await mirror.reload(config)
        await mirror.reload(recorded(later, seen))
    keys: set[tuple[str, ...]] = {
        (section, key)
        for section in Config.model_fields
        if isinstance(table := getattr(later, section), BaseModel)
        for key in type(table).model_fields
    }
    keys |= {("upstreams", key) for key in type(later.upstreams[HUB]).model_fields}
    keys |= {(section,) for section in Config.model_fields}  # lists of tables too
    assert keys - seen - _OF_THE_FIRST_PROCESS - _READ_AT_THE_STOP - FIXED == set(), (
        "a key that is read at the start alone must be told to need a restart (config/changes.py)"
    )


async def test_credentials_of_clients_are_taken_from_one_reload_to_the_next(
    mirror: Mirror, upstream: FakeRegistry, reload: Reload
) -> None:
    ann, office = basic("ann", "secret"), Office(upstream)
    office.add("team/app", image(b"ours"), ann)
    path = "/v2/team/app/manifests/1"
    taking = {HUB: {"url": upstream.url, "client_credentials": True}}
    for _ in range(2):
        answer = await mirror.get(path, Authorization=ann)
        assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, False)
        await reload(taking)
        assert (await mirror.get(path, Authorization=ann)).status == 200
        answer = await mirror.get(path)
        assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, True)
        await reload({HUB: upstream.url})
    assert office.given.count(("GET", "manifests")) == 1, "it was in the cache the second time"
