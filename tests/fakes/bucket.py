"""An S3 server in this process: one bucket, without checks of signatures, with faults."""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "images"
_PIECE = 64 * 1024
_KEY = re.compile(r"Credential=([^/]+)/")
_XML = '<?xml version="1.0" encoding="UTF-8"?>'


@dataclass
class FakeBucket:
    """The objects of a bucket on a free port of the loopback.

    ``hang``: requests are not answered while it is cleared (an event that is set at first).
    ``status``: the answer to all requests.  ``refuse``: the answer to writes.  ``cut``: a download
    breaks off after so many bytes.  ``rate``: bytes per second of a download.  ``written``: when
    each object was written (Unix seconds), 0 if it was put into ``objects``.  ``lifecycle``: the
    rules of the bucket.  ``conditional`` False: If-None-Match is ignored.
    ``keys``: the access keys of all requests.  ``skew``: seconds by which the clock is fast.
    ``refuse_signed``: signed addresses are refused.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    hang: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    refuse: int = 0
    refuse_signed: bool = False
    cut: int | None = None
    rate: float | None = None
    lifecycle: str = ""
    skew: float = 0.0
    conditional: bool = True
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeBucket"]:
        self.hang.set()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            self.hang.set()
            await runner.cleanup()
            await asyncio.sleep(0)  # broken connections are closed now

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.method] += 1
        self.keys.update(_KEY.findall(request.headers.get("Authorization", "")))
        key = request.path.removeprefix(f"/{BUCKET}").lstrip("/")
        body = await request.read()
        await self.hang.wait()
        writing = request.method in {"PUT", "POST", "DELETE"}
        if self.status or (writing and self.refuse):
            return web.Response(status=self.status or self.refuse)
        if self.refuse_signed and "X-Amz-Signature" in request.query:
            return web.Response(status=403)
        if request.method in {"GET", "HEAD"}:
            if "lifecycle" in request.query:
                return web.Response(text=self.lifecycle, status=200 if self.lifecycle else 404)
            return await self._get(request, key) if key else self._listed(request)
        if request.method == "DELETE":
            if upload := request.query.get("uploadId"):
                self.parts.pop(upload, None)
            else:
                self.objects.pop(key, None)
            return web.Response(status=204)
        return self._written(request, key, body)

    def _written(self, request: web.Request, key: str, body: bytes) -> web.Response:
        upload = request.query.get("uploadId", "")
        if request.method == "POST" and "uploads" in request.query:
            self.parts[f"u{len(self.parts)}"] = {}
            name = f"<UploadId>u{len(self.parts) - 1}</UploadId>"
            text = f"{_XML}<InitiateMultipartUploadResult>{name}</InitiateMultipartUploadResult>"
            return web.Response(text=text)
        if request.method == "POST":
            parts = self.parts.pop(upload)
            self._store(key, b"".join(parts[number] for number in sorted(parts)))
            text = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            return web.Response(text=_XML + text)
        if upload:
            self.parts[upload][int(request.query["partNumber"])] = body
        elif self.conditional and "If-None-Match" in request.headers and key in self.objects:
            return web.Response(status=412)
        else:
            self._store(key, body)
        return web.Response(headers={"ETag": '"e"'})

    def _store(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.written[key] = time.time() + self.skew

    def _listed(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{self._time(key).isoformat()}"
            f"</LastModified><Size>{len(self.objects[key])}</Size><ETag>e</ETag></Contents>"
            for key in keys
        )
        return web.Response(text=f"{_XML}<ListBucketResult>{found}</ListBucketResult>")

    def _time(self, key: str) -> datetime:
        return datetime.fromtimestamp(self.written.get(key, 0.0), UTC)

    async def _get(self, request: web.Request, key: str) -> web.StreamResponse:
        data = self.objects.get(key)
        if data is None:
            return web.Response(status=404)
        fields = {"ETag": '"e"', "Last-Modified": format_datetime(self._time(key), usegmt=True)}
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            fields["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=fields)
        response.content_length = len(data) - start
        with contextlib.suppress(ConnectionResetError):  # the client did not wait
            await response.prepare(request)
            await self._send(request, response, data, start)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, data: bytes, start: int
    ) -> None:
        for position in range(start, len(data) if request.method == "GET" else start, _PIECE):
            if self.cut is not None and position - start >= self.cut:
                assert request.transport is not None
                request.transport.abort()
                break
            await response.write(data[position : position + _PIECE])
            await asyncio.sleep(_PIECE / self.rate if self.rate else 0)
