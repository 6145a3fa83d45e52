"""`mirror doctor --cluster`: what the mirrors share, as a person meets it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mirror.cli.clients import app
from tests.fakes.bucket import BUCKET, FakeBucket
from tests.peers.process import Process, accepts, free_port

RULE = (
    "<LifecycleConfiguration><Rule><Status>Enabled</Status><AbortIncompleteMultipartUpload>"
    "<DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>"
    "</LifecycleConfiguration>"
)
NAME = f"s3://{BUCKET}"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


@pytest.fixture
def fake() -> Iterator[FakeBucket]:
    """A bucket in a thread, since the command has an event loop of its own."""
    fake, ready, ended = FakeBucket(lifecycle=RULE), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with fake.running():
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    yield fake
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


def doctor(tmp_path: Path, toml: str) -> Result:
    file = tmp_path / "mirror.toml"
    file.write_text(f"[cluster]\n{toml}\n")
    return CliRunner().invoke(app, ["doctor", "--cluster", "--config", str(file)])


def of(fake: FakeBucket) -> str:
    return f'objects = "{NAME}"\nendpoint = "{fake.url}"\nfirst_byte_timeout = "20s"'


def test_a_good_bucket_is_told(fake, tmp_path):
    said = doctor(tmp_path, of(fake))
    lines = said.stdout.splitlines()
    assert lines[0].startswith(f"ok     {NAME}: takes and returns objects (first byte after ")
    assert lines[1:] == [
        f"ok     {NAME}: has the rule that removes the parts of unfinished uploads",
        f"the cluster of {NAME}: nothing is wrong",
    ]
    assert said.exit_code == 0
    assert fake.objects == {}


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
def test_a_redirected_client_is_tried(fake, tmp_path, endpoint):
    table = f'{of(fake)}\nredirect_networks = ["10.0.0.0/8"]\nredirect_endpoint = "{endpoint}"'
    said = doctor(tmp_path, table)
    line = said.stdout.splitlines()[1]
    if endpoint:
        assert line.startswith(f"note   {endpoint}: cannot be reached from here: ")
    else:
        assert line == f"ok     {fake.url}: gives objects to redirected clients"
    assert said.exit_code == 0
    assert fake.objects == {}


def test_a_client_that_the_bucket_refuses_is_wrong(fake, tmp_path, monkeypatch):
    table = f'{of(fake)}\nredirect_networks = ["10.0.0.0/8"]'
    fake.refuse_signed = True
    said = doctor(tmp_path, table)
    assert f"wrong  {fake.url}: answers redirected clients with 403" in said.stdout
    assert said.exit_code == 1
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said = doctor(tmp_path, table)
    assert f"wrong  {NAME}: signs no addresses: " in said.stdout
    fake.status = 403
    said = doctor(tmp_path, table)
    assert "signs" not in said.stdout, "the bucket itself is wrong"


@pytest.mark.parametrize("rules", ["", RULE.replace("Enabled", "Disabled")])
def test_a_bucket_that_keeps_the_parts_of_uploads_is_wrong(fake, tmp_path, rules):
    fake.lifecycle = rules
    said = doctor(tmp_path, of(fake))
    assert f"wrong  {NAME}: has not the rule that removes the parts of unf" in said.stdout
    assert "fix: add a lifecycle rule with AbortIncompleteMultipartUpload" in said.stdout
    assert said.exit_code == 1


def test_a_rule_that_cannot_be_read_is_a_note(fake, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = \naws_secret_access_key = x\n")
    said = doctor(tmp_path, f'{of(fake)}\ncredentials_file = "{file}"')
    assert f"note   {NAME}: the rule that removes the parts of unfinished uploads is" in said.stdout
    assert said.exit_code == 0


def test_a_bucket_without_rights_is_wrong(fake, tmp_path):
    fake.status = 403
    said = doctor(tmp_path, of(fake))
    assert said.stdout.startswith(f"wrong  {NAME}: ")
    assert "and let the mirror list the bucket, and get, put and delete objects" in said.stdout
    assert f"note   {NAME}: the rule that removes the parts of unfinished uploads" in said.stdout
    assert "hunter2" not in said.output


def test_a_server_without_conditional_writes_is_a_note(fake, tmp_path):
    fake.conditional = False
    assert f"note   {NAME}: ignores If-None-Match" in doctor(tmp_path, of(fake)).stdout


def test_a_clock_that_is_wrong_is_told(fake, tmp_path):
    fake.skew = 600
    assert "its clock and that of this machine differ by " in doctor(tmp_path, of(fake)).stdout


@contextmanager
def running_redis(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    process = Process(command, tmp_path / "redis.log")
    process.wait_until(lambda: accepts(port))
    try:
        yield port
    finally:
        process.terminate()


def test_redis_and_the_mirrors_are_asked(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    gone = f"http://127.0.0.1:{free_port()}"
    with running_redis(tmp_path) as port:
        said = doctor(
            tmp_path,
            f'state = "redis://127.0.0.1:{port}/0"\nsecret_file = "{secret}"\n'
            f'advertise = "{gone}"\npeers = ["{gone}", "dns:localhost:5000", "dns:no.invalid:1"]',
        )
    lines = said.stdout.splitlines()
    assert lines[0].startswith(f"ok     redis://127.0.0.1:{port}/0: answers (after ")
    assert lines[1].startswith(f"wrong  {gone}: cannot be reached: ")
    assert (
        lines[2] == "       fix: start the mirror there, or correct [cluster] peers and advertise"
    )
    assert lines[3].startswith("ok     dns:localhost:5000: is ")
    assert lines[4].startswith("wrong  dns:no.invalid:1: has no addresses: ")
    assert lines[-1] == f"the cluster of redis://127.0.0.1:{port}/0: 2 wrong"


def test_redis_that_is_gone_is_wrong_and_its_password_hidden(tmp_path):
    said = doctor(tmp_path, f'state = "redis://:hunter2@127.0.0.1:{free_port()}"')
    assert said.stdout.startswith("wrong  redis://********@127.0.0.1:")
    assert "hunter2" not in said.output


def test_a_configuration_without_a_cluster_is_one_line(tmp_path):
    said = doctor(tmp_path, "")
    assert said.output.splitlines() == [
        "mirror: [cluster] names neither objects nor state nor peers"
    ]
    assert said.exit_code == 1
