"""Real clients log in to the mirror with credentials for a private registry, and pull from it."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest
import trustme

from tests.e2e.test_proxy import NAME, environment
from tests.fakes.office import basic
from tests.peers.containerd import Containerd
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.long]

GRANT_SECONDS = 2
PASSWORDS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}
CLIENTS = {
    "docker": ("dockerd", "docker", "containerd", "runc"),
    "docker_hub": ("dockerd", "docker", "containerd", "runc"),
    "ctr": ("containerd", "ctr"),
    "podman": ("podman",),
    "skopeo": ("skopeo",),
}


@dataclass
class Office:
    """A registry that asks everybody for a password, as docker.io, and a mirror of it."""

    directory: Path
    hub: Distribution
    mirror: MirrorProcess

    def let_in(self, *users: str) -> None:
        """Only these have access from now on."""
        lines = [
            f"{user}:{bcrypt.hashpw(PASSWORDS[user].encode(), bcrypt.gensalt(4)).decode()}\n"
            for user in users
        ]
        self.directory.joinpath("htpasswd").write_text("".join(lines))
        self.hub.stop()
        self.hub.start()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    need("docker-registry", "busybox", root=True)
    directory = tmp_path_factory.mktemp("private")
    users = directory / "htpasswd"
    hub = Distribution(directory / "hub")
    mirror = MirrorProcess(
        directory / "mirror",
        {"docker.io": hub.url},
        "client_credentials = true\n"
        f'[access]\ngrant_max_age = "{GRANT_SECONDS}s"\n[log]\nlevel = "debug"\n',
    )
    hub.start()
    for client in CLIENTS:
        push_image(hub.url, f"team/{client}", "1", client, [200_000, 1000])
    hub.users = users
    office = Office(directory, hub, mirror)
    office.let_in(*PASSWORDS)
    mirror.start()
    yield office
    mirror.terminate()
    hub.stop()


#: Pulls the image of its name as a user, or as nobody; whether that went well, and what was said.
Pull = Callable[[str | None], tuple[bool, str]]
#: Runs the docker command as a user; the same.
Docker = Callable[..., tuple[bool, str]]


def run(*command: str, **environment: str) -> tuple[bool, str]:
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def docker(office: Office, directory: Path) -> Iterator[Pull]:
    """By a name that begins with the mirror, after a login to it."""
    place = f"127.0.0.1:{office.mirror.port}"

    def log_in(told: Docker, user: str) -> tuple[bool, str]:
        return told("login", "--username", user, "--password", PASSWORDS[user], place)

    yield from _docker(office, directory, f"{place}/team/docker:1", log_in)


def docker_hub(office: Office, directory: Path) -> Iterator[Pull]:
    """By the usual name, with the mirror in registry-mirrors, after a login to Docker Hub."""

    def log_in(told: Docker, user: str) -> tuple[bool, str]:
        auth = basic(user, PASSWORDS[user]).removeprefix("Basic ")
        auths = {"auths": {"https://index.docker.io/v1/": {"auth": auth}}}
        config = directory / f"as-{user}"
        config.mkdir(exist_ok=True)
        (config / "config.json").write_text(json.dumps(auths))
        return True, ""

    yield from _docker(office, directory, "team/docker_hub:1", log_in)


def _docker(
    office: Office, directory: Path, image: str, log_in: Callable[[Docker, str], tuple[bool, str]]
) -> Iterator[Pull]:
    daemon = Dockerd(directory, office.mirror.url)
    daemon.start()

    def pull(user: str | None) -> tuple[bool, str]:
        def told(*arguments: str) -> tuple[bool, str]:
            config = ("--config", str(directory / f"as-{user}"))
            return run("docker", "--host", f"unix://{directory}/docker.sock", *config, *arguments)

        if user is not None:
            worked, said = log_in(told, user)
            if not worked:
                return False, said
        result = told("pull", image)
        told("rmi", image)
        return result

    yield pull
    daemon.stop()


def ctr(office: Office, directory: Path) -> Iterator[Pull]:
    daemon = Containerd(directory)
    daemon.start()
    image = f"127.0.0.1:{office.mirror.port}/team/ctr:1"

    def pull(user: str | None) -> tuple[bool, str]:
        given = () if user is None else ("--user", f"{user}:{PASSWORDS[user]}")
        way = ("--plain-http", "--snapshotter", "native")
        done = daemon.ctr("images", "pull", *way, *given, image)
        daemon.ctr("images", "rm", "--sync", image)
        return done.returncode == 0, done.stdout + done.stderr

    yield pull
    daemon.stop()


def podman(office: Office, directory: Path) -> Iterator[Pull]:
    image = f"127.0.0.1:{office.mirror.port}/team/podman:1"
    runroot = tempfile.mkdtemp()  # Podman takes 50 characters at most
    storage = ("--root", f"{directory}/root", "--runroot", runroot, "--storage-driver", "vfs")

    def pull(user: str | None) -> tuple[bool, str]:
        given = () if user is None else ("--creds", f"{user}:{PASSWORDS[user]}")
        result = run("podman", *storage, "pull", "--tls-verify=false", *given, image)
        run("podman", *storage, "rmi", image)
        return result

    yield pull
    shutil.rmtree(runroot)


def skopeo(office: Office, directory: Path) -> Iterator[Pull]:
    source = f"docker://127.0.0.1:{office.mirror.port}/team/skopeo:1"

    def pull(user: str | None) -> tuple[bool, str]:
        given = (
            ("--src-no-creds",) if user is None else ("--src-creds", f"{user}:{PASSWORDS[user]}")
        )
        copy = directory / "copy"
        result = run("skopeo", "copy", "--src-tls-verify=false", *given, source, f"dir:{copy}")
        shutil.rmtree(copy, ignore_errors=True)
        return result

    yield pull


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, office: Office) -> Iterator[tuple[str, Pull]]:
    need(*CLIENTS[request.param], root=True)
    directory = office.directory / request.param
    directory.mkdir()
    for pull in globals()[request.param](office, directory):
        yield request.param, pull


def test_right_credentials_pull_cached_none_or_revoked_ones_do_not(
    office: Office, client: tuple[str, Pull]
) -> None:
    name, pull = client
    worked, said = pull(None)
    assert not worked, said
    worked, said = pull("ann")
    assert worked, said

    def fetched() -> int:
        prefix = f"/v2/team/{name}/blobs/"
        return sum(path.startswith(prefix) for path in office.hub.fetched())

    cold = fetched()
    assert cold >= 3, "config and layers, but for busybox that another image may have brought"
    for user in PASSWORDS:
        worked, said = pull(user)
        assert worked, said
    assert fetched() == cold
    worked, said = pull(None)
    assert not worked, said

    office.let_in("bob")
    time.sleep(GRANT_SECONDS)
    worked, said = pull("ann")
    assert not worked, said
    worked, said = pull("bob")
    assert worked, said
    assert fetched() == cold
    office.let_in(*PASSWORDS)

    told = office.mirror.output() + json.dumps(office.mirror.metrics())
    for user, password in PASSWORDS.items():
        assert password not in told
        assert basic(user, password).removeprefix("Basic ") not in told


def test_docker_by_proxy_logs_in_to_the_registry_and_pulls_by_its_own_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The registry speaks TLS and asks everybody for a password; the mirror is Docker's proxy."""
    tmp_path = tmp_path_factory.mktemp("by-proxy")  # short: sockets are below it
    need(*CLIENTS["docker"], "docker-registry", "busybox", root=True)
    authority, users = trustme.CA(), tmp_path / "htpasswd"
    issued = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    issued.write_to_path(str(tmp_path / "registry.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca-of-registry.pem"))
    hub = Distribution(tmp_path / "hub")
    hub.start()
    push_image(hub.url, "team/demo", "1", "demo", [200_000])
    hub.stop()
    hub.users, hub.certificate = users, tmp_path / "registry.pem"
    mirror = MirrorProcess(
        tmp_path / "mirror",
        {"docker.io": "http://127.0.0.1:9"},
        f'[upstreams."{NAME}"]\nurl = "{hub.url}"\nca_file = "{tmp_path}/ca-of-registry.pem"\n'
        f'[access]\ngrant_max_age = "{GRANT_SECONDS}s"\n'
        f'[proxy]\nlisten = "127.0.0.1:{free_port()}"\n',
    )
    office = Office(tmp_path, hub, mirror)
    with contextlib.ExitStack() as stack:
        stack.callback(hub.stop)
        office.let_in(*PASSWORDS)
        mirror.start()
        stack.callback(mirror.terminate)
        daemon = Dockerd(tmp_path / "docker", environment=environment(tmp_path))
        daemon.start()
        stack.callback(daemon.stop)

        def pull(user: str | None) -> tuple[bool, str]:
            command = ("docker", "--host", f"unix://{tmp_path}/docker/docker.sock")
            config = ("--config", str(tmp_path / f"as-{user}"))
            if user is not None:
                given = ("--username", user, "--password", PASSWORDS[user])
                worked, said = run(*command, *config, "login", *given, NAME)
                if not worked:
                    return False, said
            result = run(*command, *config, "pull", f"{NAME}/team/demo:1")
            run(*command, "rmi", f"{NAME}/team/demo:1")
            return result

        assert not pull(None)[0]
        worked, said = pull("ann")
        assert worked, said
        cold = hub.blob_requests()
        worked, said = pull("bob")
        assert worked, said
        assert not pull(None)[0]
        office.let_in("bob")
        time.sleep(GRANT_SECONDS)
        assert not pull("ann")[0]
        worked, said = pull("bob")
        assert worked, said
        given = hub.fetched()
        assert len(given) == len(set(given)), "each once"
        assert cold >= 3
