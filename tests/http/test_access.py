"""Who may use the mirror, and what they may pull."""

import asyncio
import base64
import ipaddress
import itertools
import json
import os
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import aiohttp
import bcrypt
import pytest
import trustme

from mirror.http.admission import Admission
from mirror.http.htpasswd import Htpasswd, HtpasswdError, parse_htpasswd
from mirror.http.tls import Certificate
from mirror.http.turns import LineFullError
from mirror.user_error import UserError
from tests.fakes import image
from tests.running import running

pytestmark = [pytest.mark.slow]


DAY = timedelta(days=1)
REPO = "library/app"
PASSWORDS = {"alice": "rabbit hole", "bob": "Bücher:2"}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")


@pytest.fixture
def htpasswd(tmp_path):
    file = tmp_path / "htpasswd"
    lines = [f"{user}:{hashed(password)}" for user, password in PASSWORDS.items()]
    file.write_text("# who\n\n" + "\n".join(lines) + "\n")
    return file


@pytest.fixture
def hashes(monkeypatch) -> list[tuple[object, ...]]:
    """The arguments of each call that hashes a password."""
    calls: list[tuple[object, ...]] = []
    check = bcrypt.checkpw

    def counted(*given):
        calls.append(given)
        return check(*given)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return calls


@pytest.fixture
async def guarded(tmp_path, upstream, htpasswd):
    access = {"htpasswd_file": str(htpasswd)}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, access=access) as mirror:
        yield mirror


@pytest.mark.parametrize("path", ["/v2/", f"/v2/{REPO}/manifests/1", "/metrics", "/"])
async def test_without_a_password_there_is_a_challenge_and_nothing_else(guarded, upstream, path):
    upstream.add_image(REPO, image(b"layer"), "1")
    answer = await guarded.get(path)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="mirror", charset="UTF-8"'
    assert json.loads(answer.body)["errors"][0]["code"] == "UNAUTHORIZED"
    assert upstream.seen == []


@pytest.mark.parametrize("user", PASSWORDS)
async def test_the_right_password_gets_in_and_never_goes_upstream(guarded, upstream, user):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    for _ in range(2):
        header = basic(user, PASSWORDS[user])
        answer = await guarded.get(f"/v2/{REPO}/manifests/1", Authorization=header)
        assert answer.body == app.manifest
    assert all("Authorization" not in seen.headers for seen in upstream.seen)


@pytest.mark.parametrize(
    "header",
    [
        basic("alice", "wrong"),
        basic("alice", ""),
        basic("mallory", "rabbit hole"),
        basic("", ""),
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Bearer abc",
        "Basic",
        basic("alice", "x" * 3000),
    ],
)
async def test_the_wrong_one_does_not(guarded, header):
    assert (await guarded.get("/v2/", Authorization=header)).status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_always_get_in(guarded, path):
    assert (await guarded.get(path)).status == 200


async def test_a_password_is_hashed_once(htpasswd, hashes):
    users = Htpasswd(htpasswd)
    assert all([await users.knows("alice", "rabbit hole") for _ in range(5)])
    assert len(hashes) == 1
    users.close()


async def test_150_guessers_delay_a_user_elsewhere_by_two_hashes(htpasswd):
    users = Htpasswd(htpasswd)
    answered = []

    async def ask(client: str, user: str, password: str) -> bool:
        try:
            return await users.knows(user, password, client)
        finally:
            answered.append(client)

    guessers = [asyncio.create_task(ask("192.0.2.1", "alice", str(n))) for n in range(150)]
    await asyncio.sleep(0)  # now all of them wait, or were refused
    refused = len(answered)
    assert 0 < refused < 150
    known = asyncio.create_task(ask("198.51.100.7", "bob", PASSWORDS["bob"]))
    assert await known
    assert answered[refused:].index("198.51.100.7") <= 2
    results = await asyncio.gather(*guessers, return_exceptions=True)
    assert sum(isinstance(result, LineFullError) for result in results) == refused
    assert results.count(False) == 150 - refused
    users.close()


async def test_addresses_of_one_ipv6_network_are_one_guesser(htpasswd):
    users = Htpasswd(htpasswd)
    clients = [f"2001:db8:0:1::{n:x}" for n in range(150)]
    asked = [asyncio.create_task(users.knows("alice", "x", client)) for client in clients]
    await asyncio.sleep(0)
    known = asyncio.create_task(users.knows("bob", PASSWORDS["bob"], "2001:db8:0:2::1"))
    assert await known
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert any(isinstance(result, LineFullError) for result in results)
    users.close()


async def test_too_many_guesses_at_once_are_told_to_come_again(tmp_path, upstream):
    dear = bcrypt.gensalt(13) + b"." * 31  # a second and more of work for each guess
    (tmp_path / "htpasswd").write_bytes(b"alice:" + dear + b"\n")
    access = {"htpasswd_file": str(tmp_path / "htpasswd")}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, access=access) as mirror:
        asked = [
            asyncio.create_task(mirror.get("/v2/", Authorization=basic("alice", str(number))))
            for number in range(90)
        ]
        answers = [await first for first in itertools.islice(asyncio.as_completed(asked), 10)]
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert json.loads(refused.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("costs", [(4, 4), (4, 7), (9,), ()])
async def test_no_name_is_told_by_the_work_it_makes(tmp_path, monkeypatch, costs):
    """Work is counted: 2 to the power of each cost."""
    lines = [
        f"user{number}:{bcrypt.hashpw(b'right', bcrypt.gensalt(cost)).decode()}\n"
        for number, cost in enumerate(costs)
    ]
    lines.append(f"broken:$2y$04${'z' * 53}\n")  # no salt that bcrypt makes
    (tmp_path / "htpasswd").write_text("".join(lines))
    done = []
    check = bcrypt.checkpw

    def counted(secret: bytes, hashed: bytes) -> bool:
        right = check(secret, hashed)
        done.append(2 ** int(hashed.split(b"$")[2]))
        return right

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    users = Htpasswd(tmp_path / "htpasswd")
    for name in ("nobody", "broken", *(f"user{number}" for number in range(len(costs)))):
        done.clear()
        assert not await users.knows(name, "wrong")
        assert sum(done) == 2 ** max(costs, default=4)
    users.close()


async def test_connections_that_begin_together_cost_one_hash(htpasswd, hashes):
    users = Htpasswd(htpasswd)
    assert all(await asyncio.gather(*(users.knows("alice", "rabbit hole") for _ in range(8))))
    assert len(hashes) == 1
    users.close()


async def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(htpasswd, caplog):
    users = Htpasswd(htpasswd)
    assert await users.knows("alice", "rabbit hole")
    htpasswd.write_text(f"alice:{hashed('looking glass')}\n")
    os.utime(htpasswd, (1, 1))
    users.reload()
    assert not await users.knows("alice", "rabbit hole")
    assert await users.knows("alice", "looking glass")
    assert not await users.knows("bob", PASSWORDS["bob"])
    htpasswd.write_text("nonsense\n")
    users.reload()
    assert await users.knows("alice", "looking glass")
    assert "the previous users stay" in caplog.messages[-1]
    logged = len(caplog.messages)
    users.reload()
    assert len(caplog.messages) == logged, "once for each trouble"
    problem = users.problem
    assert problem is not None
    assert problem.cause == "line 1 is not a user with a bcrypt hash (htpasswd -B)"
    htpasswd.write_text(f"alice:{hashed('looking glass')}\n")
    users.reload()
    assert users.problem is None
    users.close()


@pytest.mark.parametrize(
    "line",
    [
        *("alice", ":$2y$x", "alice:{SHA}xyz", "alice:$apr1$x$y", "alice:$2y$10$short"),
        *(f"alice:$2y$03${'.' * 53}", f"alice:$2y$32${'.' * 53}", f"alice:$2y$10${'!' * 53}"),
    ],
)
def test_what_is_no_bcrypt_is_refused(line):
    with pytest.raises(HtpasswdError, match="line 1 is not a user with a bcrypt hash"):
        parse_htpasswd(line)


async def test_a_mirror_with_a_wrong_file_does_not_start(tmp_path):
    (tmp_path / "htpasswd").write_text("alice:secret\n")
    access = {"htpasswd_file": str(tmp_path / "htpasswd")}
    with pytest.raises(UserError, match="line 1"):
        async with running(tmp_path, {"docker.io": "http://127.0.0.1:9"}, access=access):
            pass


# Networks.


@pytest.mark.parametrize(
    ("networks", "status"),
    [
        (["10.0.0.0/8"], 403),
        (["10.0.0.0/8", "127.0.0.0/8"], 200),
        (["::1/128"], 403),
        (["0.0.0.0/0"], 200),
    ],
)
async def test_only_the_networks_that_are_named_get_in(tmp_path, upstream, networks, status):
    access = {"networks": networks}
    async with running(tmp_path, {"docker.io": upstream.url}, access=access) as mirror:
        assert (await mirror.get("/v2/")).status == status
        assert (await mirror.get("/metrics")).status == status
        assert (await mirror.get("/healthz")).status == 200


def test_ipv4_on_a_socket_for_both_is_ipv4():
    admission = Admission([ipaddress.ip_network("10.0.0.0/8")], None)
    assert admission._is_near("::ffff:10.1.2.3")
    assert not admission._is_near("::ffff:11.1.2.3")
    assert not admission._is_near("fe80::1%eth0")


@pytest.mark.parametrize("network", ["10.0.0.1/8", "office", "10.0.0.0/33", ""])
async def test_what_is_no_network_is_a_mistake(tmp_path, network):
    with pytest.raises(UserError, match="allowed: a network such as"):
        async with running(tmp_path, {}, access={"networks": [network]}):
            pass


# Repositories.


@pytest.mark.parametrize(
    ("allow", "deny", "had"),
    [
        (["*"], [], {"library/app", "team/app", "team/secret/app"}),
        (["library/*"], [], {"library/app"}),
        (["team/*"], ["team/secret/*"], {"team/app"}),
        (["*"], ["*/app"], set()),
        ([], [], set()),
        (["library/app", "team/a?p"], [], {"library/app", "team/app"}),
        (["**"], [], {"library/app", "team/app", "team/secret/app"}),
        (["team/**"], ["**/secret/**"], {"team/app"}),
        (["**"], ["**/team/*"], {"library/app", "team/secret/app"}),
        (["**"], ["team/*"], {"library/app"}),
    ],
)
async def test_repositories_by_globs(tmp_path, upstream, allow, deny, had):
    repositories = ["library/app", "team/app", "team/secret/app"]
    app = image(b"layer")
    for repository in repositories:
        upstream.add_image(repository, app, "1")
    table = {"url": upstream.url, "allow": allow, "deny": deny}
    async with running(tmp_path, {"docker.io": table}) as mirror:
        statuses = {}
        for repository in repositories:
            answer = await mirror.get(f"/v2/{repository}/manifests/1")
            blob = await mirror.get(f"/v2/{repository}/blobs/{app.digests[0]}")
            assert blob.status == answer.status
            statuses[repository] = answer.status
            if answer.status != 200:
                error = json.loads(answer.body)["errors"][0]
                assert (answer.status, error["code"]) == (403, "DENIED")
                assert repository in error["message"]
    assert {repository for repository, status in statuses.items() if status == 200} == had
    asked = {seen.path.split("/v2/")[1].rpartition("/manifests")[0] for seen in upstream.seen}
    assert not (set(repositories) - had) & asked, "what is denied is never asked for"


# TLS.


@pytest.fixture
def authority():
    return trustme.CA()


def write_certificate(authority: trustme.CA, directory, name: str = "127.0.0.1") -> dict[str, str]:
    issued = authority.issue_cert(name)
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    (directory / "chain.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return {"tls_certificate": str(directory / "chain.pem"), "tls_key": str(directory / "key.pem")}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("names", ["AES128 AES256", "AES256 AES128", "CHACHA20 AES128"])
async def test_the_cipher_is_the_one_that_the_client_prefers(tmp_path, authority, names):
    ciphers = {
        "AES128": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "AES256": "ECDHE-ECDSA-AES256-GCM-SHA384",
        "CHACHA20": "ECDHE-ECDSA-CHACHA20-POLY1305",
    }
    offered = [ciphers[name] for name in names.split()]
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # ssl cannot order the ciphers of TLS 1.3
    context.set_ciphers(":".join(offered))
    server = write_certificate(authority, tmp_path)
    async with running(tmp_path / "c", {}, server=server) as mirror:
        host, _, port = mirror.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        assert writer.get_extra_info("cipher")[0] == offered[0]
        writer.close()


async def test_https_serves_manifests_blobs_and_ranges(tmp_path, upstream, authority):
    layer = os.urandom(3_000_000)
    app = image(layer)
    upstream.add_image(REPO, app, "1")
    server = write_certificate(authority, tmp_path)
    async with running(tmp_path / "c", {"docker.io": upstream.url}, server=server) as mirror:
        url = mirror.url.replace("http:", "https:")
        connector = aiohttp.TCPConnector(ssl=trusting(authority))
        async with aiohttp.ClientSession(connector=connector) as session:
            secure = replace(mirror, url=url, session=session)
            assert (await secure.get(f"/v2/{REPO}/manifests/1")).body == app.manifest
            for _ in range(2):
                path = f"/v2/{REPO}/blobs/{app.digests[1]}"
                assert (await secure.get(path)).body == layer
            ranged = await secure.get(path, Range="bytes=1000000-1999999")
            assert ranged.body == layer[1_000_000:2_000_000]


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(tmp_path, authority, caplog):
    files = write_certificate(authority, tmp_path)
    certificate = Certificate(tmp_path / "chain.pem", tmp_path / "key.pem")

    async def name_seen() -> str:
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context
        )
        port = server.sockets[0].getsockname()[1]
        context = trusting(authority)
        context.check_hostname = False
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        peer = writer.get_extra_info("peercert")
        writer.close()
        server.close()
        return peer["subjectAltName"][0][1]

    assert await name_seen() == "127.0.0.1"
    write_certificate(authority, tmp_path, "mirror.example.com")
    later = time.time() + 10
    os.utime(files["tls_certificate"], (later, later))
    certificate.reload()
    assert await name_seen() == "mirror.example.com"
    (tmp_path / "key.pem").write_text("no key")
    certificate.reload()
    assert "the previous certificate stays" in caplog.messages[-1]
    logged = len(caplog.messages)
    certificate.reload()
    assert len(caplog.messages) == logged, "once for each trouble"
    problem = certificate.problem
    assert problem is not None
    assert problem.title == "The new certificate cannot be used; the previous one stays"
    assert await name_seen() == "mirror.example.com"
    write_certificate(authority, tmp_path, "mirror.example.com")
    certificate.reload()
    assert certificate.problem is None


async def test_a_key_that_does_not_fit_is_told_at_the_start(tmp_path, authority):
    server = write_certificate(authority, tmp_path)
    authority.issue_cert("x").private_key_pem.write_to_path(server["tls_key"])
    with pytest.raises(UserError, match=r"tls_certificate .* cannot be used: key values mismatch"):
        async with running(tmp_path / "c", {"docker.io": "http://127.0.0.1:9"}, server=server):
            pass


def test_the_log_and_the_page_tell_of_the_end_of_a_certificate_in_time(tmp_path, authority, caplog):
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=100)
    issued = authority.issue_cert("localhost", not_before=ends - DAY * 100, not_after=ends)
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    clock = Mock(return_value=(ends - DAY * 11).timestamp())
    certificate = Certificate(tmp_path / "pem", tmp_path / "pem", clock)
    assert (certificate.problem, caplog.messages) == (None, [])
    told = f"it is valid until {ends:%Y-%m-%d %H:%M} UTC"
    titles = [
        "The mirror's certificate expires soon",
        "The mirror's certificate has expired, and clients refuse it",
    ]
    for left, title in zip((9, -1), titles, strict=True):
        clock.return_value = (ends - DAY * left).timestamp()
        for _ in range(3):
            certificate.reload()
        problem = certificate.problem
        assert problem is not None
        assert (problem.title, problem.cause) == (title, told)
    # The log repeats no trouble within a minute of the clock that does not jump.
    assert [each.partition(":")[0] for each in caplog.messages] == titles[:1]
    caplog.clear()
    Certificate(tmp_path / "pem", tmp_path / "pem", clock)
    assert [each.partition(":")[0] for each in caplog.messages] == titles[1:]
    write_certificate(authority, tmp_path)
    certificate.use(tmp_path / "chain.pem", tmp_path / "key.pem")
    clock.return_value = time.time()
    certificate.reload()
    assert certificate.problem is None


async def test_a_certificate_without_its_key_is_a_mistake(tmp_path, authority):
    server = write_certificate(authority, tmp_path) | {"tls_key": ""}
    with pytest.raises(UserError, match="both or neither"):
        async with running(tmp_path / "c", {}, server=server):
            pass
