"""Fuzzes a running mirror with clients that send anything: raw sockets, changed requests."""

import asyncio
import contextlib
import hashlib
import random
import re
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
from aiohttp import web

from tests.fakes import FakeRegistry
from tests.fakes.content import digest_of
from tests.running import Mirror, running
from tools.fuzz.findings import Finding, Report, listening
from tools.fuzz.mutation import Message, mutated

_BLOB = bytes(range(256)) * 300
_DIGEST = digest_of(_BLOB)
_MANIFEST = b'{"schemaVersion":2,"manifests":[]}'
_INDEX = "application/vnd.oci.image.index.v1+json"
_REPOSITORY = "library/fuzz"
_SILENCE_SECONDS = 0.1
_WORKERS = 48
# aiohttp answers in the HTTP version of the request, even 0.9.
_HEAD = re.compile(
    rb"HTTP/[0-9]\.[0-9] ([1-9][0-9]{2}) [^\x00-\x1f\x7f]*\r\n((?:[^\r\n]+\r\n)*)\r\n"
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([^\x00-\x08\x0a-\x1f\x7f]*)")
_ASKED = re.compile(r"/v2/[a-z0-9._/-]+/(?:manifests|blobs|tags|referrers)/[\w.:-]+(?:\?[!-~]*)?")
_KEPT = re.compile(
    r"(?:(?:private-)?(?:blobs|manifests)|partial|expected|pending|tags|listings|private|ledger"
    r"|control)(?:/[a-z0-9._-]+)*|cache\.db[a-z-]*|lock|format|scrub|rebuild|CACHEDIR\.TAG|probe",
)
_ALLOWED = {*range(200, 500), 100, 501, 505}


class _Registry(FakeRegistry):
    """Ignores invalid page sizes, so that no client can make it fail."""

    async def _tags(self, *_: object) -> web.StreamResponse:
        return web.json_response({"name": _REPOSITORY, "tags": ["1"]})


def _request(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: mirror", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


_PATH = f"/v2/{_REPOSITORY}"
_CHUNKED = b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"
_VALID = (
    _request("/v2/"),
    _request("/"),
    _request("/healthz"),
    _request("/readyz"),
    _request("/metrics", "Accept: application/openmetrics-text;version=1.0.0"),
    _request(f"{_PATH}/blobs/{_DIGEST}", "Range: bytes=0-9", f'If-Range: "{_DIGEST}"'),
    _request(f"{_PATH}/blobs/{_DIGEST}", "Range: bytes=-5,7-9"),
    _request(f"{_PATH}/blobs/{_DIGEST}", f'If-None-Match: W/"{_DIGEST}", "x"'),
    _request(f"{_PATH}/blobs/{_DIGEST}?ns=docker.io", method="HEAD"),
    _request(f"http://mirror:5000{_PATH}/blobs/{_DIGEST}"),
    _request(f"/docker.io{_PATH}/manifests/1", f"Accept: {_INDEX};q=0.5, */*;q=0", "Accept: a/b"),
    _request(f"{_PATH}/manifests/1?ns=docker.io", "Accept: */*", method="HEAD"),
    _request(f"/v2/docker.io/{_REPOSITORY}/manifests/{digest_of(_MANIFEST)}", "If-None-Match: *"),
    _request(f"{_PATH}/manifests/sha256%3A{'a' * 64}"),
    _request(f"{_PATH}/tags/list?n=5&last=a%20b&ns=docker.io"),
    _request(f"{_PATH}/referrers/{_DIGEST}?artifactType=application%2Fvnd.test&n=2"),
    _request("/v2/_catalog"),
    _request(f"{_PATH}/blobs/uploads/", "Content-Length: 5", method="POST", body=b"hello"),
    _request(f"{_PATH}/manifests/1", "Transfer-Encoding: chunked", method="PUT", body=_CHUNKED),
    _request("/v2/", "Expect: 100-continue", "Content-Length: 5", method="PATCH", body=b"hello"),
    _request("*", method="OPTIONS"),
    _request("mirror:443", method="CONNECT"),
    _request("/v2/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAM"),
    _request("/v2/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: YWJj"),
    b"GET /v2/ HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
)
_LINES = (
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Encoding: gzip\r\n", b" folded\r\n"),
    *(b"Range: bytes=1-\r\n", b"Range: bytes=-99999999999999999999\r\n", b"If-None-Match: *\r\n"),
    *(b"If-Range: x\r\n", b"Host: evil.test\r\n", b"Host: [::1]:x\r\n", b"Connection: close\r\n"),
    *(b"Authorization: Basic dXNlcjpzZWNyZXQ=\r\n", b"Authorization: Basic //79\r\n"),
    *(b"Authorization: Basic dToAAA==\r\n", b"Authorization: Bearer x\r\n", b"X-Fuzz: 1\r\n"),
    *(b"Authorization: Basic OjpcAA==\r\n", b"Expect: 100-continue\r\n", b"Expect: 200\r\n"),
    *(b"Accept: \xff\r\n", b"Cookie: " + b"a=b;" * 500 + b"\r\n", b"X-Forwarded-For: ::1\r\n"),
    *(b"User-Agent: \x1b[31m\xff\r\n", b"Accept-Encoding: gzip\r\n", b": empty\r\n"),
)


@dataclass(frozen=True)
class Case:
    """The bytes for one connection, and the sizes of its pieces."""

    messages: tuple[Message, ...]
    piece: int

    def bytes(self) -> bytes:
        return b"".join(message.bytes() for message in self.messages)

    def simpler(self) -> list["Case"]:
        """Cases with one message or change less."""
        found = []
        for at, message in enumerate(self.messages):
            before, after = self.messages[:at], self.messages[at + 1 :]
            if before or after:
                found.append(Case(before + after, self.piece))
            found += [Case((*before, less, *after), self.piece) for less in message.simpler()]
        return found


def _made(rng: random.Random) -> Case:
    if rng.random() < 0.03:
        return Case((Message(rng.randbytes(rng.randrange(1, 200))),), 1 << 20)
    count = rng.choice([1, 1, 1, 2, 3])
    messages = [mutated(rng, rng.choice(_VALID), _LINES) for _ in range(count)]
    return Case(tuple(messages), rng.choice([1 << 20, 1 << 20, 50, 7]))


@dataclass
class _TestBed:
    """A mirror, its upstream, and the directories for its files."""

    root: Path
    upstream: FakeRegistry
    mirror: Mirror
    login: str

    async def known(self) -> None:
        """Check that the mirror still serves what it served before."""
        fields = {"Authorization": self.login} if self.login else {}
        answer = await self.mirror.get(f"{_PATH}/blobs/{_DIGEST}", **fields)
        assert (answer.status, answer.body == _BLOB) == (200, True), f"now {answer.status}"

    def inside(self) -> None:
        """Check that no file is outside the cache, and that upstream got no invalid request."""
        outside = {path.name for path in self.root.iterdir()} - {"cache", "htpasswd"}
        assert not outside, f"files outside of the cache: {outside}"
        cache = self.root / "cache"
        names = (str(path.relative_to(cache)) for path in cache.rglob("*"))
        strange = [name for name in names if not _KEPT.fullmatch(name)]
        assert not strange, f"unexpected files: {strange}"
        for seen in self.upstream.seen:
            assert seen.method in {"GET", "HEAD"}, f"upstream saw {seen.method}"
            assert "Authorization" not in seen.headers, "a client's password reached upstream"
            assert seen.path == "/v2/" or _ASKED.fullmatch(seen.path), f"upstream saw {seen.path}"
            assert ".." not in seen.path.partition("?")[0].split("/"), f"upstream saw {seen.path}"
        self.upstream.seen.clear()

    async def check(self, case: Case) -> None:
        """Send a case, and check every response."""
        _check_answers(await self._exchange(case))

    async def _exchange(self, case: Case) -> bytes:
        address = urlsplit(self.mirror.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        data, answered = case.bytes(), bytearray()
        try:
            for start in range(0, min(len(data), 50 * case.piece), case.piece):
                writer.write(data[start : start + case.piece])
                if case.piece < len(data):
                    await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := await asyncio.wait_for(reader.read(1 << 20), _SILENCE_SECONDS):
                    answered += piece
        finally:
            writer.transport.abort()
        return bytes(answered)


def _check_answers(data: bytes) -> None:
    while data:
        head = _HEAD.match(data)
        if head is None:
            assert b"\r\n\r\n" not in data, f"not HTTP: {data[:300]!r}"
            return
        status = int(head[1])
        assert status in _ALLOWED, f"answered {status}: {data[:500]!r}"
        data = _check_body(status, _fields(head[2]), data[head.end() :])


def _fields(head: bytes) -> dict[bytes, bytes]:
    fields = {}
    for line in head.split(b"\r\n")[:-1]:
        matched = _FIELD.fullmatch(line)
        assert matched, f"not a header field: {line!r}"
        name = matched[1].lower()
        assert not name.startswith(b"x-fuzz"), "a header field of the request came back as one"
        assert name not in fields or name == b"set-cookie", f"twice: {line!r}"
        fields[name] = matched[2]
    return fields


def _check_body(status: int, fields: dict[bytes, bytes], data: bytes) -> bytes:
    """Check a body, and return the bytes after it; no body of the mirror looks like a response."""
    if status in {100, 304} or not data or data.startswith(b"HTTP/"):
        return data
    assert b"content-length" in fields, f"{status} with a body of no length: {fields}"
    length = int(fields[b"content-length"])
    body, rest = data[:length], data[length:]
    if status == 200 and len(body) == length and b"docker-content-digest" in fields:
        digest = fields[b"docker-content-digest"].decode()
        assert digest == "sha256:" + hashlib.sha256(body).hexdigest(), "the wrong bytes"
    if status == 206 and len(body) == length:
        for said, part in _parts(fields, body):
            named = re.fullmatch(rb"bytes (\d+)-.*", said)
            assert named, f"no range: {said!r}"
            start = int(named[1])
            assert part == _BLOB[start : start + len(part)] != b"", "the wrong range"
    return rest


def _parts(fields: dict[bytes, bytes], body: bytes) -> list[tuple[bytes, bytes]]:
    """The ranges in a multipart body, each with its Content-Range."""
    kind, _, boundary = fields[b"content-type"].partition(b"; boundary=")
    if kind != b"multipart/byteranges":
        return [(fields[b"content-range"], body)]
    first, *parts, last = body.split(b"\r\n--" + boundary)
    assert (first, last) == (b"", b"--\r\n"), "not a multipart body, or more than that"
    heads = (part.partition(b"\r\n\r\n") for part in parts)
    return [(head.rpartition(b"Content-Range: ")[2], part) for head, _, part in heads]


@asynccontextmanager
async def _bed(*, guarded: bool) -> AsyncIterator[_TestBed]:
    """A mirror; ``guarded``: with a password."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        root = Path(directory)
        access, login = {}, ""
        if guarded:
            hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(rounds=4)).decode()
            (root / "htpasswd").write_text(f"user:{hashed}\n")
            access, login = {"htpasswd_file": str(root / "htpasswd")}, "Basic dXNlcjpzZWNyZXQ="
        async with _Registry() as upstream:
            upstream.add_blob(_BLOB)
            upstream.add_manifest(_REPOSITORY, _MANIFEST, _INDEX, "1")
            upstreams = {"docker.io": upstream.url}
            async with running(root / "cache", upstreams, access=access) as mirror:
                yield _TestBed(root, upstream, mirror, login)


async def _failure(bed: _TestBed, case: Case, errors: list[str]) -> str:
    """The error of the mirror in a case; empty if there is none."""
    before = len(errors)
    try:
        await bed.check(case)
        await bed.known()
        bed.inside()
    except Exception:
        return traceback.format_exc() + "".join(errors[before:])
    return "".join(errors[before:])


async def _reduced(bed: _TestBed, case: Case, errors: list[str]) -> Case:
    for simpler in case.simpler():
        if await _failure(bed, simpler, errors):
            return await _reduced(bed, simpler, errors)
    return case


async def _run(report: Report, seconds: float, seed: int, *, guarded: bool) -> None:
    rng, stop = random.Random(seed), time.monotonic() + seconds
    with listening() as errors:
        async with _bed(guarded=guarded) as bed:
            # At least one case: on a busy machine the start of the mirror may take longer than the
            # whole run.
            while (time.monotonic() < stop or not report.cases) and not report.findings:
                cases = [_made(rng) for _ in range(_WORKERS)]
                failures = await asyncio.gather(*(_failure(bed, case, errors) for case in cases))
                report.cases += len(cases)
                for case in [case for case, why in zip(cases, failures, strict=True) if why]:
                    # Run alone, because concurrent cases share the log.
                    if why := await _failure(bed, case, errors):
                        small = await _reduced(bed, case, errors)
                        report.findings.append(Finding(repr((small.bytes(), small.piece)), why))
                        break
                else:
                    for why in filter(None, failures):
                        report.findings.append(Finding(repr([c.bytes() for c in cases]), why))
        seen = len(errors)
    report.findings += [Finding("(at the end)", error) for error in errors[seen:]]


def fuzz_clients(seconds: float, seed: int) -> list[Report]:
    """Fuzz a mirror without a password, then one with a password."""
    reports = [Report("clients"), Report("clients (password)")]
    asyncio.run(_run(reports[0], seconds * 3 / 4, seed, guarded=False))
    asyncio.run(_run(reports[1], seconds / 4, seed, guarded=True))
    return reports
