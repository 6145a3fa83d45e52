"""A registry in this process: the pull API done right, unless a fault says otherwise."""

import asyncio
import json
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tests.fakes.content import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    digest_of,
)
from tests.fakes.faults import Fault
from tests.peers.process import free_port

_PATH = re.compile(r"/v2/(?P<repo>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<ref>[^/]+)")
_KINDS = {"manifests": "manifest", "blobs": "blob", "tags": "tags", "referrers": "referrers"}
#: What was there before manifests were negotiated is sent to everybody, as distribution does it.
_NEGOTIATED = {OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST}
_PIECE = 64 * 1024

Guard = Callable[[web.BaseRequest, str], web.Response | None]


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    kind: str
    headers: dict[str, str]


class _Counting(web.Server):
    accepted = 0

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self.accepted += 1
        super().connection_made(handler, transport)


@dataclass
class FakeRegistry:
    """A registry on a free port of the loopback; ``rate`` in bytes/s holds for all together.

    ``guard`` may answer a request instead (authorization); ``rate_per_connection`` throttles
    each answer by itself; ``referrers_api`` False: a registry that only knows the tag of old.
    """

    rate: float | None = None
    rate_per_connection: float | None = None
    guard: Guard | None = None
    redirect_blobs_to: Callable[[str], str] | None = None
    tls: ssl.SSLContext | None = None
    referrers_api: bool = True
    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    _held_at: int | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    # Content.

    def add_blob(self, data: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, repo: str, body: bytes, media_type: str, *tags: str) -> str:
        digest = digest_of(body)
        self.manifests[repo, digest] = (body, media_type)
        for tag in tags:
            self.tags[repo, tag] = digest
        return digest

    def add_image(self, repo: str, image: Image, *tags: str) -> str:
        for blob in image.blobs:
            self.add_blob(blob)
        return self.add_manifest(repo, image.manifest, image.media_type, *tags)

    # What it saw.

    def count(self, kind: str, method: str = "") -> int:
        return sum(seen.kind == kind and method in {"", seen.method} for seen in self.seen)

    @property
    def connections(self) -> int:
        """How many are open now."""
        return sum(handler.transport is not None for handler in self._server.connections)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        """How many connections there have been since it listens."""
        return self._server.accepted

    # Pace: a download that is to be under way for as long as the test needs it.

    def hold(self, at: int) -> None:
        """Stop each answer with a blob after ``at`` bytes, until there is another word."""
        self._let_go_to(at)

    def release(self) -> None:
        """Let all answers go on."""
        self._let_go_to(None)

    def _let_go_to(self, at: int | None) -> None:
        self._held_at = at
        self._moved.set()
        self._moved = asyncio.Event()

    # Life.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, again on the same port after :meth:`stop`.

        Not on a port of the system's choice: it would give that to another program meanwhile.
        """
        self.port = self.port or free_port()
        self._server = _Counting(self._handle)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.tls
        )
        await site.start()
        self._due = 0.0

    async def stop(self) -> None:
        """Refuse connections from now on."""
        await self._runner.cleanup()

    # The pull API.

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        matched = _PATH.fullmatch(path)
        kind = _KINDS[matched["kind"]] if matched else "ping"
        self.seen.append(Seen(request.method, request.raw_path, kind, dict(request.headers)))
        fault = self._fault(kind, request.method)
        if fault is not None and (answer := await self._failed(request, fault)) is not None:
            return answer
        if self.guard is not None and (refusal := self.guard(request, path)) is not None:
            return refusal
        if matched is None:
            return web.json_response({}) if path == "/v2/" else _error(404, "NAME_UNKNOWN")
        answerer = getattr(self, f"_{kind}")
        response: web.StreamResponse = await answerer(
            request, matched["repo"], matched["ref"], fault or Fault(times=0)
        )
        return response

    def _fault(self, kind: str, method: str) -> Fault | None:
        for fault in self.faults:
            if fault.matches(kind, method):
                fault.times -= 1
                return fault
        return None

    async def _failed(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse | None:
        if fault.refuse and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if fault.hang_before:
            await asyncio.sleep(3600)
        if fault.redirect:
            return web.Response(status=307, headers={"Location": fault.redirect})
        if fault.status:
            headers = {name: value for name, value in fault.headers.items() if value is not None}
            if request.method == "GET" and (fault.gate is not None or fault.trickle):
                return await _slowly(request, fault, headers)
            return web.Response(status=fault.status, body=fault.body, headers=headers)
        return None

    async def _manifest(
        self, request: web.BaseRequest, repo: str, reference: str, fault: Fault
    ) -> web.StreamResponse:
        digest = self.tags.get((repo, reference), reference)
        found = self.manifests.get((repo, digest))
        accepted = request.headers.get("Accept", "")
        if found is None or (found[1] in _NEGOTIATED and accepted and found[1] not in accepted):
            return _error(404, "MANIFEST_UNKNOWN")
        body, media_type = found
        if fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        fields: dict[str, str | None] = {
            "Docker-Content-Digest": digest,
            "Content-Type": media_type,
            **fault.headers,
        }
        headers = {name: value for name, value in fields.items() if value is not None}
        if request.method == "HEAD":
            headers["Content-Length"] = str(len(body))
            return web.Response(headers=headers)
        return web.Response(body=body, headers=headers)

    async def _tags(
        self, request: web.BaseRequest, repo: str, _: str, __: Fault
    ) -> web.StreamResponse:
        query = request.rel_url.query
        names = sorted(tag for known, tag in self.tags if known == repo)
        if not names:
            return _error(404, "NAME_UNKNOWN")
        names = [name for name in names if name > query.get("last", "")]
        page = names[: int(query.get("n", len(names)))]
        headers = {}
        if len(page) < len(names):
            link = f"/v2/{repo}/tags/list?n={query['n']}&last={page[-1]}"
            headers["Link"] = f'<{link}>; rel="next"'
        return web.json_response({"name": repo, "tags": page}, headers=headers)

    async def _referrers(
        self, request: web.BaseRequest, repo: str, digest: str, _: Fault
    ) -> web.StreamResponse:
        if not self.referrers_api:
            return _error(404, "NAME_UNKNOWN")
        wanted = request.rel_url.query.get("artifactType")
        found = []
        for (known, name), (body, media_type) in self.manifests.items():
            document = json.loads(body)
            if known != repo or document.get("subject", {}).get("digest") != digest:
                continue
            kind = document.get("artifactType", document.get("config", {}).get("mediaType"))
            if wanted in {None, kind}:
                entry = {"mediaType": media_type, "digest": name, "size": len(body)}
                found.append(entry | {"artifactType": kind})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        headers = {"Content-Type": OCI_INDEX}
        if wanted is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        return web.Response(body=json.dumps(index).encode(), headers=headers)

    async def _blob(
        self, request: web.BaseRequest, _: str, digest: str, fault: Fault
    ) -> web.StreamResponse:
        data = self.blobs.get(digest)
        if data is None:
            return _error(404, "BLOB_UNKNOWN")
        if self.redirect_blobs_to is not None:
            return web.Response(status=307, headers={"Location": self.redirect_blobs_to(digest)})
        start, stop, status = 0, len(data), 200
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if ranged and not fault.ignore_range:
            start, status = int(ranged[1]), 206
            stop = min(stop, int(ranged[2]) + 1) if ranged[2] else stop
            if start >= stop:
                return _error(416, "RANGE_INVALID")
        response = web.StreamResponse(status=status, headers={"Accept-Ranges": "bytes"})
        if status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if fault.unknown_length:
            response.enable_chunked_encoding()
        else:
            response.content_length = stop - start
        for name, value in fault.headers.items():
            response.headers[name] = value or ""
        await response.prepare(request)
        if request.method == "GET":
            await self._send(request, response, (digest, data, start, stop), fault)
        return response

    async def _send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        content: tuple[str, bytes, int, int],
        fault: Fault,
    ) -> None:
        digest, data, start, end = content
        if fault.flip is not None:
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
        break_at = fault.break_at()
        stop = end if break_at is None else min(end, start + break_at)
        for position in range(start, stop, _PIECE):
            while self._held_at is not None and position - start >= self._held_at:
                await self._moved.wait()
            piece = data[position : min(position + _PIECE, stop)]
            await response.write(piece)
            self.sent[digest] += len(piece)
            await self._pace(len(piece))
        while fault.endless:
            await response.write(data[:_PIECE] or b"x")
        if break_at is not None:
            await _break(request, fault)
        elif response.chunked or not fault.headers:
            await response.write_eof()

    async def _pace(self, size: int) -> None:
        if self.rate_per_connection is not None:
            await asyncio.sleep(size / self.rate_per_connection)
        if self.rate is not None:
            # By the clock, so that what one sleep took too long the next makes good.
            now = asyncio.get_running_loop().time()
            self._due = max(self._due, now - 0.1) + size / self.rate
            await asyncio.sleep(self._due - now)


async def _slowly(
    request: web.BaseRequest, fault: Fault, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=fault.status, headers=headers)
    response.content_length = len(fault.body)
    await response.prepare(request)
    if fault.gate is not None:
        await response.write(fault.body[:9])
        await fault.gate.wait()
        await response.write(fault.body[9:])
    else:
        for byte in fault.body:
            await response.write(bytes([byte]))
            await asyncio.sleep(fault.trickle)
    await response.write_eof()
    return response


async def _break(request: web.BaseRequest, fault: Fault) -> None:
    if fault.stall is not None:
        await asyncio.sleep(3600)
    transport = request.transport
    if transport is None:
        return
    if fault.reset is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


def _error(status: int, code: str) -> web.Response:
    body = {"errors": [{"code": code, "message": "said the fake registry"}]}
    return web.json_response(body, status=status)
