"""The lines that a mirror writes about pulls: what a person reads, and the fields for machines."""

import json
import logging
import os
from contextlib import asynccontextmanager

import aiohttp
import bcrypt
import pytest

from mirror.logs import JsonFormatter, TextFormatter
from tests.fakes import Fault, image, random_bytes
from tests.fakes.content import OCI_INDEX, index
from tests.peers.process import free_port
from tests.running import running

REPO = "library/app"
APP = image(random_bytes(300_000), b"small layer")
DOCKER = {"User-Agent": "docker/28.0.4 go/go1.23.7 UpstreamClient(Docker-Client/28.0.4)"}


@pytest.fixture
def filled(upstream):
    upstream.add_image(REPO, APP, "1")
    document = json.loads(index(APP))
    document["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm64"}
    upstream.add_manifest(REPO, json.dumps(document).encode(), OCI_INDEX, "multi")
    return upstream


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO", "mirror.access")
    return lambda: [each for each in caplog.records if each.name == "mirror.access"]


@asynccontextmanager
async def mirror_of(tmp_path, upstream, **sections):
    async with running(tmp_path, {"docker.io": upstream.url}, **sections) as mirror:
        yield mirror


async def pull(mirror, tag: str, repo: str = REPO, app=APP, **fields: str) -> list[int]:
    """Ask as dockerd does; return the statuses."""
    manifests = [("HEAD", tag), ("GET", tag), ("GET", app.digest)]
    paths = [(method, f"manifests/{name}") for method, name in manifests]
    paths += [("GET", f"blobs/{digest}") for digest in app.digests]
    statuses = []
    for method, path in paths:
        url = f"{mirror.url}/v2/{repo}/{path}"
        try:
            async with mirror.session.request(method, url, headers={**DOCKER, **fields}) as answer:
                await answer.read()
                statuses.append(answer.status)
        except aiohttp.ClientError:
            statuses.append(0)
        if statuses[-1] != 200:
            break
    return statuses


async def test_a_pull_is_one_line_with_all_that_a_person_asks(tmp_path, filled, said):
    for number, result in enumerate(("miss", "hit")):
        async with mirror_of(tmp_path, filled) as mirror:
            assert await pull(mirror, "multi") == [200] * 6
            await mirror.get(f"/v2/{REPO}/tags/list")
            await mirror.get("/")
        line = said()[number]
        name, platform, client, agent, outcome, amount = line.getMessage().split("  ")
        assert (name, platform) == ("docker.io/library/app:multi", "linux/arm64")
        assert (client, agent, outcome) == ("127.0.0.1", "Docker 28.0", result)
        assert amount.startswith("294 KiB in ")
        assert amount.endswith("/s)")
        assert (line.levelno, line.pulls, line.reference) == (logging.INFO, 1, "multi")
        assert line.upstream_seconds > 0, "for the tag at least"
    assert len(said()) == 2


@pytest.mark.parametrize(
    ("repo", "status", "level", "line"),
    [
        ("library/none", 404, "INFO", "docker.io/library/none:1  {}  not found"),
        (
            *("nvcr.io/nvidia/cuda", 403, "WARNING"),
            "nvcr.io/nvidia/cuda:1  {}  refused: this mirror is not configured for nvcr.io; its",
        ),
        (
            *("down.example/x", 502, "WARNING"),
            "down.example/x:1  {}  failed: down.example: cannot connect to http://127.0.0.1:1 (con",
        ),
    ],
)
async def test_a_pull_that_fails_says_why_and_once(
    tmp_path, filled, said, repo, status, level, line
):
    upstreams = {
        "docker.io": filled.url,
        "down.example": "http://127.0.0.1:1",
        "nvcr.io": {"url": filled.url, "enabled": False},
    }
    async with running(tmp_path, upstreams) as mirror:
        for _ in range(5):
            assert await pull(mirror, "1", repo) == [status]
            url = f"{mirror.url}/v2/{repo}/manifests/1"
            async with mirror.session.get(url, headers=DOCKER) as answer:
                assert answer.status == status
    (record,) = said()
    assert record.levelname == level
    assert record.getMessage().startswith(line.format("127.0.0.1  Docker 28.0"))


async def test_a_layer_that_breaks_off_is_a_warning_unless_the_client_gets_it_at_last(
    tmp_path, filled, said
):
    for number, times in enumerate((2, 10_000)):
        filled.faults.append(Fault(flip=5, times=times))
        async with mirror_of(tmp_path / str(times), filled) as mirror:
            for _ in range(4):
                await pull(mirror, "1")
        filled.faults.clear()
        record = said()[number]
        assert record.levelname == ("INFO", "WARNING")[number]
    assert "failed: docker.io: sent bytes for library/app that are not sha256:" in (
        said()[1].getMessage()
    )


async def test_a_client_that_leaves_has_not_been_failed(tmp_path, filled, said):
    blob = random_bytes(40 << 20)
    digest = filled.add_blob(blob)
    filled.hold(8 << 20)
    async with mirror_of(tmp_path, filled) as mirror:
        answer = await mirror.session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}", headers=DOCKER)
        await answer.content.readexactly(1 << 20)
        answer.close()
    filled.release()
    (record,) = said()
    assert record.levelname == "INFO"
    assert "docker.io/library/app  127.0.0.1  Docker 28.0  interrupted: " in record.getMessage()


async def test_the_line_names_users_of_the_mirror_and_no_password(tmp_path, filled, said, caplog):
    caplog.set_level("DEBUG")
    file = tmp_path / "users"
    file.write_text(f"bob:{bcrypt.hashpw(b'hunter2', bcrypt.gensalt(4)).decode()}\n")
    given = {"Authorization": aiohttp.encode_basic_auth("bob", "hunter2")}
    async with mirror_of(tmp_path, filled, access={"htpasswd_file": str(file)}) as mirror:
        assert await pull(mirror, "1") == [401]
        assert await pull(mirror, "1", **given) == [200] * 6
    line = said()[-1]
    assert "  127.0.0.1 (bob)  " in line.getMessage()
    assert line.user == "bob"
    assert "hunter2" not in caplog.text
    assert given["Authorization"].split()[1] not in caplog.text


async def test_the_lack_of_a_signature_is_no_line(tmp_path, filled, said):
    async with mirror_of(tmp_path, filled) as mirror:
        for suffix in ("", ".sig", ".att"):
            tag = f"sha256-{APP.digest.removeprefix('sha256:')}{suffix}"
            assert await pull(mirror, tag) == [404]
        assert await pull(mirror, "none") == [404]
    (line,) = said()
    assert line.getMessage() == f"docker.io/{REPO}:none  127.0.0.1  Docker 28.0  not found"


async def test_a_wrong_password_is_a_warning_and_no_password_is_none(tmp_path, filled, caplog):
    caplog.set_level("INFO")
    file = tmp_path / "users"
    file.write_text(f"bob:{bcrypt.hashpw(b'hunter2', bcrypt.gensalt(4)).decode()}\n")
    given = {"Authorization": aiohttp.encode_basic_auth("bob", "hunter3")}
    async with mirror_of(tmp_path, filled, access={"htpasswd_file": str(file)}) as mirror:
        assert (await mirror.get("/v2/")).status == 401
        assert not [each for each in caplog.records if each.levelname == "WARNING"]
        answer = await mirror.get("/v2/", **given)
        assert b"user or password is wrong (docker login, or auths of your client)" in answer.body
    (line,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert (line.client, line.status, line.path) == ("127.0.0.1", 401, "/v2/")
    assert line.detail.startswith("user or password is wrong")
    assert "hunter3" not in caplog.text


async def test_names_that_clients_give_cannot_break_a_line(tmp_path, filled, said):
    agent = 'x/1 \x1b[31m "é'.encode().decode("latin-1")
    async with mirror_of(tmp_path, filled) as mirror:
        url = f"{mirror.url}/v2/{REPO}/manifests/1"
        async with mirror.session.get(url, headers={"User-Agent": "e\tvil/9.9.9 x"}) as answer:
            assert answer.status == 200
    (record,) = said()
    assert record.getMessage().isprintable()
    assert agent not in record.getMessage()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals_that_want_them(monkeypatch, terminal, environment):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outer, inner = os.openpty() if terminal else os.pipe()
    try:
        form = TextFormatter.of(inner)
    finally:
        os.close(outer)
        os.close(inner)
    line = form.format(logging.makeLogRecord({"msg": "upstream is down", "levelno": 30}))
    assert ("\x1b[33mwarning\x1b[0m" in line) == (terminal and not environment)
    assert ("T" in line.split(" ")[0]) == (not terminal), "a clock's time for people who watch"


def test_a_closed_standard_error_is_no_terminal():
    assert "T" in TextFormatter.of(-1).head(0.0, logging.INFO)


async def test_machines_get_a_line_per_request_and_one_per_pull(tmp_path, filled):
    reading, writing = os.pipe()
    handler = logging.StreamHandler(os.fdopen(writing, "w"))
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel("INFO")
    try:
        async with mirror_of(tmp_path, filled) as mirror:
            assert await pull(mirror, "multi") == [200] * 6
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        handler.stream.close()
    with os.fdopen(reading) as lines:
        records = [each for each in map(json.loads, lines) if each["logger"] == "mirror.access"]
    assert [each["message"] for each in records[:-1]] == ["request"] * 6
    last = records[-1]
    assert {name: last[name] for name in (
        "upstream", "repository", "reference", "platform", "client", "agent", "result", "pulls",
    )} == {
        "upstream": "docker.io", "repository": REPO, "reference": "multi",
        "platform": "linux/arm64", "client": "127.0.0.1", "agent": "Docker 28.0",
        "result": "miss", "pulls": 1,
    }  # fmt: skip
    assert last["bytes"] == sum(each["bytes"] for each in records[:-1])
    assert last["seconds"] >= max(each["seconds"] for each in records[:-1])
    assert last["upstream_seconds"] > 0
    assert records[0]["upstream_seconds"] > 0


async def test_with_the_log_of_requests_off_only_failures_are_told(tmp_path, filled, said, caplog):
    caplog.set_level("WARNING", "mirror.access")
    upstreams = {"docker.io": filled.url, "gone.example": f"http://127.0.0.1:{free_port()}"}
    async with running(tmp_path, upstreams) as mirror:
        assert await pull(mirror, "1") == [200] * 6
        for _ in range(6):
            assert await pull(mirror, "1", "gone.example/x") == [502]
    (record,) = said()
    assert record.getMessage().startswith("gone.example/x:1  127.0.0.1  Docker 28.0  failed: ")
