"""What a person reads when pulls go wrong: one line on the trouble, and one on each pull.

Each trouble is real, and met by many requests.  The lines are compared as a whole.
"""

import re
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trustme
from aiohttp import web

from tests.access_log.test_log import APP, REPO, pull
from tests.fakes import FakeRegistry, Fault
from tests.peers.process import free_port
from tests.running import running

CHALLENGE = {"WWW-Authenticate": 'Basic realm="registry"'}
KEYS = 'username and password of [upstreams."docker.io"]'
CONTINUES = (
    "cached images are still served, and the mirror goes on asking: check the network, DNS, and "
    "the address"
)


@asynccontextmanager
async def dead():
    yield f"http://127.0.0.1:{free_port()}", {}


@asynccontextmanager
async def wrong_password():
    async with FakeRegistry(guard=lambda *_: web.Response(status=401, headers=CHALLENGE)) as one:
        yield one.url, {"username": "me", "password": "wrong"}


@asynccontextmanager
async def rate_limited():
    async with FakeRegistry() as one:
        one.faults.append(Fault(kind="", status=429, times=10_000, headers={"Retry-After": "3600"}))
        yield one.url, {}


@asynccontextmanager
async def flipped_byte():
    async with FakeRegistry() as one:
        one.add_image(REPO, APP, "1")
        one.faults.append(Fault(flip=5, times=10_000))
        yield one.url, {}


@asynccontextmanager
async def untrusted():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with FakeRegistry(tls=context) as one:
        yield one.url, {}


@asynccontextmanager
async def certified(name="127.0.0.1", begins=timedelta(-9), ends=timedelta(9)):
    """A registry whose certificate is from a CA that the mirror trusts."""
    context, now = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), datetime.now(UTC)
    ca = trustme.CA()
    ca.issue_cert(name, not_before=now + begins, not_after=now + ends).configure_cert(context)
    with ca.cert_pem.tempfile() as ca_file:
        async with FakeRegistry(tls=context) as one:
            yield one.url, {"ca_file": ca_file}


@asynccontextmanager
async def without_tls():
    async with FakeRegistry() as one:
        yield one.url.replace("http:", "https:"), {}


def distrusted(trouble, what, name):
    """The case of a certificate with which something is wrong."""
    cause = f"the certificate of URL {what}"
    return pytest.param(
        *(trouble, 502),
        f"docker.io: URL does not answer: {cause}; cached images are still served, and the mirror "
        "goes on asking: check the certificate, ca_file, and the clock of this machine",
        f"failed: docker.io: {cause}",
        id=name,
    )


DAY = timedelta(days=1)
LAYER = APP.digests[0]
TROUBLES = [
    pytest.param(
        *(dead, 502),
        f"docker.io: URL does not answer: cannot connect to URL (connection refused); {CONTINUES}",
        "failed: docker.io: cannot connect to URL (connection refused)",
        id="dead",
    ),
    distrusted(untrusted, "is not trusted (ca_file adds a CA)", "untrusted"),
    distrusted(partial(certified, ends=-DAY), "has expired, or that of its CA", "expired"),
    distrusted(partial(certified, begins=DAY), "is not valid yet", "not yet valid"),
    distrusted(partial(certified, "example.com"), "is for another address", "other name"),
    pytest.param(
        *(without_tls, 502),
        "docker.io: URL does not answer: cannot connect to URL (TLS: wrong version number); "
        + CONTINUES,
        "failed: docker.io: cannot connect to URL (TLS: wrong version number)",
        id="without TLS",
    ),
    pytest.param(
        *(wrong_password, 401),
        f"docker.io: refuses the mirror's login: correct {KEYS} (tried again when it changes, and "
        "every 60 s); until then only public images are pulled, as an anonymous client",
        f"refused: docker.io: refuses the mirror's login; its operator must correct {KEYS}",
        id="wrong password",
    ),
    pytest.param(
        *(rate_limited, 429),
        "docker.io: URL answers 429: too many requests (HEAD manifest); rate limited until TIME "
        "UTC or later, and not asked before; cached images are still served; a login may raise the "
        f"limit: set {KEYS}",
        "failed: docker.io: URL answers 429: too many requests (HEAD manifest)",
        id="429",
    ),
    pytest.param(
        *(flipped_byte, 0),
        f"docker.io: sent bytes for library/app that are not {LAYER}; not stored: check the "
        "registry (URL) and the proxies and caches on the way",
        f"failed: docker.io: sent bytes for library/app that are not {LAYER}",
        id="flipped byte",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "status", "cause", "reason"), TROUBLES)
async def test_one_line_on_the_trouble_and_one_on_the_pull(
    tmp_path, caplog, trouble, status, cause, reason
):
    caplog.set_level("INFO")
    async with trouble() as (url, keys):
        upstream = {"url": url, **keys}
        async with running(tmp_path, {"docker.io": upstream}) as mirror:
            for _ in range(5):
                assert (await pull(mirror, "1"))[-1] == status
    pulled = f"docker.io/library/app:1  127.0.0.1  Docker 28.0  {reason}  5 pulls"
    assert [
        re.sub(r"\d\d:\d\d:\d\d", "TIME", each.getMessage()).replace(url, "URL")
        for each in caplog.records
        if each.name.startswith("mirror.") and each.levelname == "WARNING"
    ] == [cause, pulled]
    assert "Error" not in caplog.text


async def test_an_upstream_that_errs_for_several_objects_is_one_line(tmp_path, caplog, upstream):
    upstream.add_image("library/app", APP, "1")
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        upstream.faults.append(Fault(kind="manifest", status=500, times=1000))
        for _ in range(5):
            assert (await pull(mirror, "1"))[-1] == 502
        assert "answers 500" not in caplog.text, "it may be the fault of that image"
        for tag in ("2", "3", "4"):
            assert (await pull(mirror, tag))[-1] == 502
        upstream.faults.clear()
        assert (await pull(mirror, "1"))[-1] == 200
    told = [
        re.sub(r"\d+ s$", "N s", each.getMessage()).replace(upstream.url, "URL")
        for each in caplog.records
        if each.name == "mirror.upstream.breaker"
    ]
    errs = "docker.io: URL answers 500 to each request: see the registry's own log or status page"
    assert told == [
        f"{errs}; cached images are still served",
        "docker.io: URL answers again, after N s",
    ]
