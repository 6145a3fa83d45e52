"""Finding the processes of a running mirror, asking and telling them."""

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from mirror.admin.client import lookup_running
from mirror.server.control import ControlDirectory, stand
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image, random_bytes
from tests.running import running

APP = image(random_bytes(64 * 1024, 1))


@pytest.fixture
async def registry():
    async with FakeRegistry() as fake:
        fake.add_image("library/app", APP, "1")
        yield fake


def dead_socket(directory: Path, name: str) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.bind(str(directory / name))
        raw.listen()
    return directory / name


async def test_a_running_mirror_is_found_and_says_who_it_is(tmp_path, registry):
    async with running(tmp_path, {"docker.io": registry.url}), lookup_running(tmp_path) as found:
        assert found is not None
        (worker,) = found.workers
        assert worker.name == f"{os.getpid()}.sock"
        told = await found.ask("/control/about")
        assert told["pid"] == os.getpid()
    assert list((tmp_path / "control").iterdir()) == []
    async with lookup_running(tmp_path) as found:
        assert found is None


async def test_only_the_owner_may_open_the_socket(tmp_path, registry):
    async with running(tmp_path, {"docker.io": registry.url}):
        control = tmp_path / "control"
        assert stat.S_IMODE(control.stat().st_mode) == 0o700
        (file,) = control.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_registry_api_is_there_without_admission(tmp_path, registry):
    upstreams = {"docker.io": registry.url}
    async with (
        running(tmp_path, upstreams, access={"networks": ["192.0.2.0/24"]}) as mirror,
        lookup_running(tmp_path) as found,
    ):
        assert (await mirror.get("/v2/library/app/manifests/1")).status == 403
        assert found is not None
        session = found.workers[0].session
        async with session.get("/v2/library/app/manifests/1") as answer:
            assert (answer.status, await answer.read()) == (200, APP.manifest)


async def test_what_operators_pull_is_logged_and_counts_for_no_client(tmp_path, registry, caplog):
    caplog.set_level("DEBUG", "mirror.access")
    async with (
        running(tmp_path, {"docker.io": registry.url}) as mirror,
        lookup_running(tmp_path) as found,
    ):
        assert found is not None
        async with found.workers[0].session.get("/v2/library/app/manifests/1") as answer:
            await answer.read()
        assert "operator" in {getattr(record, "client", "") for record in caplog.records}
        figures = await mirror.metrics()
        assert not [name for name in figures if name.startswith("mirror_requests_total")]
        assert [name for name in figures if name.startswith("mirror_upstream_requests_total")]


async def test_control_is_not_on_the_port(tmp_path, registry):
    async with running(tmp_path, {"docker.io": registry.url}) as mirror:
        assert (await mirror.get("/control/about")).status == 404


async def test_what_the_mirror_does_not_know_is_refused_in_one_line(tmp_path, registry):
    async with (
        running(tmp_path, {"docker.io": registry.url}),
        lookup_running(tmp_path) as found,
    ):
        assert found is not None
        with pytest.raises(UserError, match=r"no POST /control/nothing.*differ in version"):
            await found.tell("/control/nothing", {})


async def test_a_cache_directory_may_have_a_long_name(tmp_path, registry):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with running(deep, {"docker.io": registry.url}), lookup_running(deep) as found:
        assert found is not None
        assert (await found.ask("/control/about"))["pid"] == os.getpid()


async def test_sockets_of_the_dead_are_ignored_and_removed(tmp_path):
    left = dead_socket(tmp_path / "control", "1.sock")
    async with lookup_running(tmp_path) as found:
        assert found is None
    assert not left.exists()


async def test_a_mirror_that_starts_removes_the_sockets_of_the_dead(tmp_path, registry):
    left = dead_socket(tmp_path / "control", "1.sock")
    async with running(tmp_path, {"docker.io": registry.url}):
        assert not left.exists()


async def test_what_is_no_socket_is_swept_away_like_one_of_the_dead(tmp_path):
    control = tmp_path / "control"
    control.mkdir(mode=0o700)
    (control / "1.sock").write_text("")
    async with lookup_running(tmp_path) as found:
        assert found is None


def test_two_processes_that_both_have_the_pid_1_both_stand(tmp_path):
    first, second = stand(tmp_path / "control", 1), stand(tmp_path / "control", 1)
    with closing(ControlDirectory.open(tmp_path / "control")) as sockets:
        assert sockets.live() == ["1.1.sock", "1.sock"]
        first.withdraw()
        assert sockets.live() == ["1.1.sock"]
    second.withdraw()


async def test_without_a_place_for_it_the_mirror_runs_without_a_control_socket(
    tmp_path, registry, caplog
):
    (tmp_path / "control").write_text("in the way")
    async with running(tmp_path, {"docker.io": registry.url}) as mirror:
        assert (await mirror.get("/v2/library/app/manifests/1")).status == 200
        async with lookup_running(tmp_path) as found:
            assert found is None
    said = [record for record in caplog.records if "no control socket" in record.getMessage()]
    assert len(said) == 1
