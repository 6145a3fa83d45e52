"""Fuzzes a running mirror with an upstream that answers anything: changed HTTP over raw TCP."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import re
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.fakes.content import digest_of
from tests.running import Answer, Mirror, running
from tools.fuzz.findings import Finding, Report, listening
from tools.fuzz.mutation import Message, mutated

_ALLOWED = {200, 206, 304, 400, 401, 403, 404, 416, 429, 502, 503, 504}
_WORKERS = 64
_UPSTREAMS = 160
_ROUND_SECONDS = 20.0
_PATIENCE_SECONDS = 60.0
_RECOVERY_SECONDS = 60.0
_CASE = re.compile(r"case-(\d{8})")
_ROUTE = re.compile(r"/(manifests|blobs|tags|referrers|token|storage)/")
_INDEX = "application/vnd.oci.image.index.v1+json"
_FETCH = {"connect_timeout": "1s", "first_byte_timeout": "500ms", "idle_timeout": "500ms"}
_BROKEN = (
    aiohttp.ClientPayloadError,
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
)
_GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_LINES = (
    *(b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"Content-Range: x\r\n"),
    *(b"Docker-Content-Digest: sha256:x\r\n", b"Content-Type: text/html\r\n"),
    *(b"Content-Type: \xff\r\n", b"Content-Type: a\r\n b\r\n", b"OCI-Filters-Applied: \xff\r\n"),
    *(b"Link: </v2/x?n=1>; rel=next\r\n", b"Link: <http://[::1>; rel=next\r\n", b"Link: ,;=\r\n"),
    *(b"Link: <?%ff>; rel=next\r\n", b"Link: <x?a=\xff>; rel=next\r\n", b"Location: http://[\r\n"),
    *(b"ratelimit-limit: 100;w=1\r\n", b"ratelimit-remaining: 1\r\n", b"Set-Cookie: a=b\r\n"),
    *(b"ratelimit-remaining: " + b"9" * 400 + b"\r\n", b"Retry-After: \xd9\xa1\r\n"),
    *(b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b" folded\r\n"),
    *(b'WWW-Authenticate: Bearer realm="x"\r\n', b"WWW-Authenticate: Basic\r\n", b"X-Fuzz: 1\r\n"),
)


@dataclass(frozen=True)
class Case:
    """A client's request, and upstream's responses per route; the last one repeats."""

    ask: str
    method: str
    wanted: str
    answers: Mapping[str, tuple[Message, ...]]
    ending: str
    number: int

    def names(self) -> tuple[str, str]:
        """The names of the case in errors."""
        reference = self.ask.partition("?")[0].rpartition("/")[2]
        return f"case-{self.number:08}", reference if ":" in reference else "\0"

    def literal(self) -> str:
        """The whole case, with its invalid parts."""
        sent = {route: [each.bytes() for each in said] for route, said in self.answers.items()}
        edits = [edit for said in self.answers.values() for each in said for edit in each.edits]
        return f"{(self.method, self.ask, self.wanted, self.ending, sent)}  # {edits}"


def _answer(status: str, *fields: str, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass(frozen=True)
class _Content:
    """Content that no earlier case has requested."""

    number: int
    size: int

    @property
    def blob(self) -> bytes:
        return hashlib.sha256(b"%d" % self.number).digest() * (self.size // 32)

    @property
    def manifest(self) -> bytes:
        document = {"schemaVersion": 2, "manifests": [], "annotations": {"n": f"{self.number:08}"}}
        return json.dumps(document).encode()

    @property
    def repository(self) -> str:
        return f"fuzz/case-{self.number:08}"


def _asks(rng: random.Random, content: _Content) -> tuple[str, list[bytes]]:
    """A path below a repository, and valid responses to it."""
    body, blob = content.manifest, content.blob
    fields = (f"Content-Type: {_INDEX}", f"Docker-Content-Digest: {digest_of(body)}")
    manifest = _answer("200 OK", *fields, body=body)
    half = len(blob) // 2
    page = json.dumps({"name": content.repository, "tags": ["a", "b"]}).encode()
    link = f'Link: </v2/{content.repository}/tags/list?n=2&last=b>; rel="next"'
    refers = (f"Content-Type: {_INDEX}", "OCI-Filters-Applied: artifactType")
    stretch = f"Content-Range: bytes {half}-{len(blob) - 1}/{len(blob)}"
    begun = _answer("200 OK", body=blob[:half], length=len(blob))
    tag, wanted = "/manifests/latest", f"/blobs/{digest_of(blob)}"
    return rng.choice(
        [
            (tag, [manifest]),
            (tag, [_answer("200 OK", *fields, length=len(body)), manifest]),  # to HEAD, then GET
            (f"/manifests/{digest_of(body)}", [manifest]),
            ("/tags/list?n=2", [_answer("200 OK", link, body=page)]),
            (
                f"/referrers/{digest_of(body)}?artifactType=a%2Fb",
                [_answer("200 OK", *refers, body=body)],
            ),
            (wanted, [_answer("200 OK", body=blob)]),
            (wanted, [_chunked(blob)]),
            (wanted, [begun, _answer("206 Partial Content", stretch, body=blob[half:])]),
        ]
    )


def _chunked(blob: bytes) -> bytes:
    parts = (blob[:20], blob[20:], b"")
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def _made(rng: random.Random, number: int, origin: str) -> Case:
    content = _Content(number, rng.choice([64, 1024, 200_000]))
    path, valid = _asks(rng, content)
    route = path.split("/")[1]
    answers = {route: valid}
    turn = rng.randrange(10)
    if turn == 0:
        service = f'service="fuzz",scope="repository:{content.repository}:pull"'
        challenge = f'Bearer realm="{origin}/token/{content.repository}",{service}'
        refusal = _answer("401 Unauthorized", f"WWW-Authenticate: {challenge}")
        token = b'{"token": "abc", "access_token": "abc", "expires_in": 300}'
        answers = {route: [refusal, *valid], "token": [_answer("200 OK", body=token)]}
    elif turn == 1:
        location = f"Location: {origin}/storage/{content.repository}?sig=a%2Fb%3D"
        answers = {route: [_answer("307 Temporary Redirect", location)], "storage": valid}
    elif turn == 2:
        status = rng.choice(["404 Not Found", "403 No", "416 No", "500 No", "405 No", "304 No"])
        answers = {route: [_answer(status, body=b'{"errors": []}')]}
    elif turn == 3 and rng.random() < 0.3:
        answers = {route: [_answer("429 Slow", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT")]}
    messages = {
        name: tuple(mutated(rng, each, _LINES) for each in said) for name, said in answers.items()
    }
    return Case(
        f"/{content.repository}{path}",
        rng.choice(["GET", "GET", "GET", "HEAD"]),
        rng.choice(["", "", "", "bytes=10-19"]) if route == "blobs" else "",
        messages,
        rng.choice(["close", "keep", "reset"]),
        number,
    )


@dataclass
class _Upstream:
    """Answers with the responses of the cases; other requests get a plain 200."""

    cases: dict[int, Case] = field(default_factory=dict)
    given: dict[tuple[int, str], int] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection stays open."""
        target = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split(" ", 2)[1]
        named, route = _CASE.search(target), _ROUTE.search(target)
        case = self.cases.get(int(named[1])) if named else None
        said = case.answers.get(route[1]) if case and route else None
        if case is None or route is None or not said:
            writer.write(_GOOD)
            return True
        turn = self.given[case.number, route[1]] = self.given.get((case.number, route[1]), -1) + 1
        writer.write(said[min(turn, len(said) - 1)].bytes())
        await writer.drain()
        if case.ending == "reset":
            writer.transport.abort()
        return case.ending == "keep"


class _Found(Exception):  # noqa: N818  # names the event
    """The mirror has violated a property."""


class _Retired(Exception):  # noqa: N818  # names the event
    """The upstream has answered 429, so the mirror pauses it; the next upstream replaces it."""


@dataclass
class _TestBed:
    """A mirror, the upstream behind all its names, and the number of the next case."""

    mirror: Mirror
    upstream: _Upstream
    origin: str
    numbers: Iterator[int]

    async def check(self, case: Case, name: str) -> None:
        """Send the request of a case, and check the response."""
        self.upstream.cases[case.number] = case
        fields = {"Range": case.wanted} if case.wanted else {}
        path = f"/v2/{name}{case.ask}"
        for _ in range(2):  # the second response may come from the cache
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    answer = await self.mirror.get(path, case.method, **fields)
            except TimeoutError:
                raise _Found(f"no answer in {_PATIENCE_SECONDS} s") from None
            except _BROKEN:
                continue
            except aiohttp.ClientResponseError as error:
                if "Got more than" in error.message:  # header fields: the client's limit
                    continue
                raise
            _check_answer(case, answer)

    async def works(self, name: str) -> None:
        """Check that the mirror still pulls a new blob from that upstream."""
        content = _Content(next(self.numbers), 1024)
        digest = digest_of(content.blob)
        path = f"/{content.repository}/blobs/{digest}"
        good = (Message(_answer("200 OK", body=content.blob)),)
        self.upstream.cases[content.number] = Case(
            path, "GET", "", {"blobs": good}, "keep", content.number
        )
        stop = time.monotonic() + _RECOVERY_SECONDS
        while True:
            answer = None
            with contextlib.suppress(*_BROKEN):
                answer = await self.mirror.get(f"/v2/{name}{path}")
            if answer is not None and answer.status == 200:
                assert answer.body == content.blob
                return
            if answer is not None and answer.status == 429:
                raise _Retired
            if time.monotonic() > stop:
                raise _Found(f"does not work afterwards: {answer}")
            await asyncio.sleep(0.2)


def _check_answer(case: Case, answer: Answer) -> None:
    if answer.status not in _ALLOWED:
        raise _Found(f"answered {answer.status}: {answer.body[:500]!r}")
    for name, value in answer.headers.items():
        if name.lower().startswith("x-fuzz") or not re.fullmatch("[^\0\r\n]*", value):
            raise _Found(f"a header field of upstream was passed on: {name}: {value!r}")
    if case.method == "HEAD":
        return
    if answer.status >= 400:
        assert json.loads(answer.body)["errors"][0]["code"]
    digest = answer.headers.get("Docker-Content-Digest", "")
    if answer.status == 200 and digest:
        if digest_of(answer.body, digest.partition(":")[0]) != digest:
            raise _Found(f"the wrong bytes, all of them: {len(answer.body)}")
        asked = case.ask.rpartition("/")[2]
        if asked.startswith("sha256:") and asked != digest:
            raise _Found(f"not the requested digest: {digest}")


@dataclass
class _Run:
    """Rounds of workers, each with its own upstream, until the time is over."""

    report: Report
    rng: random.Random
    stop: float
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    recent: dict[str, Case] = field(default_factory=dict)

    async def round(self) -> None:
        """Run a new mirror until its upstreams are used up."""
        upstream = _Upstream()
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        names = [f"u{number}.test" for number in range(_UPSTREAMS)]
        tables = {name: {"url": origin, "default": name == names[0]} for name in names}
        with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
            root = Path(directory) / "cache"
            async with server, running(root, tables, fetch=_FETCH) as mirror:
                bed = _TestBed(mirror, upstream, origin, self.numbers)
                stop = min(self.stop, time.monotonic() + _ROUND_SECONDS)
                await asyncio.gather(*(self._work(bed, names, stop) for _ in range(_WORKERS)))

    async def _work(self, bed: _TestBed, names: list[str], stop: float) -> None:
        name = names.pop()
        # At least one case: on a busy machine the start of the mirror may take longer than the
        # whole run.
        while (time.monotonic() < stop or not self.report.cases) and not self.report.findings:
            case = _made(self.rng, next(self.numbers), bed.origin)
            self.report.cases += 1
            self.recent[name] = case
            try:
                await bed.check(case, name)
                await bed.works(name)
            except _Retired:
                if not names:
                    return
                name = names.pop()
            except Exception:
                self.report.findings.append(Finding(case.literal(), traceback.format_exc()))


async def _fuzz(report: Report, seconds: float, seed: int) -> None:
    run = _Run(report, random.Random(seed), time.monotonic() + seconds)
    with listening() as errors:
        while time.monotonic() < run.stop and not report.findings and not errors:
            await run.round()
    report.findings += [Finding(_suspects(run.recent.values(), error), error) for error in errors]


def _suspects(cases: Iterable[Case], error: str) -> str:
    """The cases named in a logged error, else all active ones."""
    named = [case for case in cases if any(name in error for name in case.names())]
    return "\n".join(case.literal() for case in named or cases)


def fuzz_upstreams(seconds: float, seed: int) -> list[Report]:
    """Fuzz a mirror from the upstream side."""
    report = Report("upstreams")
    asyncio.run(_fuzz(report, seconds, seed))
    return [report]
