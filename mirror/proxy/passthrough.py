"""Requests that are passed on to a registry unchanged, and the registry's answers.

Nothing is stored.  Bodies are streamed in both directions at the speed of the slower side.  The
times of pushes are recorded: answers about a repository from before its push are stale.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from mirror.http.body import delimit, reset
from mirror.http.exchange import EXCHANGE
from mirror.http.sendfile import Sender
from mirror.oci.challenge import parse_challenges
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import UpstreamError
from mirror.upstream.passthrough import Outgoing, end_to_end
from mirror.upstream.responses import PassedAnswer

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_CHALLENGES: Final = 8  # fields, each of which may hold several
_BODILESS: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Passing:
    """Passes requests on to the registries of the upstreams."""

    registries: Mapping[str, Endpoints]
    sender: Sender
    stall_seconds: float

    async def ask(
        self,
        request: web.BaseRequest,
        target: str,
        host: str,
        without: Collection[str] = (),
    ) -> PassedAnswer:
        """Return the registry's answer to ``target`` (path and query); the caller must close it.

        ``host`` is the client's name for the registry: URLs in the answer use it.  The fields in
        ``without`` (lower case) are left out.

        Raises:
            UpstreamError: the registry does not answer.
        """
        headers = end_to_end(request.headers)
        for name in without:
            headers.popall(name, None)
        if host:  # empty for a client of HTTP/1.0: the upstream's URL then provides the host
            headers[hdrs.HOST] = host
        body = self._body(request) if request.body_exists else None
        outgoing = Outgoing(request.method, target, headers, body)
        return await self.registries[request[EXCHANGE].connected].origin.pass_on(outgoing)

    async def realms(self, upstream: str, host: str) -> list[str]:
        """Return the token services (realms) in the registry's challenges.

        Raises:
            UpstreamError: the registry cannot be asked.
        """
        headers = CIMultiDict({hdrs.HOST: host}) if host else CIMultiDict[str]()
        answer = await self.registries[upstream].origin.pass_on(Outgoing("GET", "/v2/", headers))
        answer.close()
        fields = answer.headers.getall("WWW-Authenticate", [])[:_MAX_CHALLENGES]
        challenges = chain.from_iterable(map(parse_challenges, fields))
        return [challenge.parameters.get("realm", "") for challenge in challenges]

    async def relay(self, request: web.BaseRequest, answer: PassedAnswer) -> web.StreamResponse:
        """Send the registry's answer to the client and close it.

        Raises:
            UpstreamError, OSError: the answer failed before its first byte was sent.
            ConnectionAbortedError: the body broke off; the client's connection is reset.
        """
        exchange = request[EXCHANGE]
        exchange.kind = "passed"
        try:
            response = _response(request, answer)
            await response.prepare(request)
            exchange.answered()
            if request.method != hdrs.METH_HEAD and answer.status not in _BODILESS:
                while piece := await answer.read():
                    async with self.sender.patience():
                        await response.write(piece)
                    exchange.sent_bytes += len(piece)
            await response.write_eof()
        except (UpstreamError, OSError) as error:
            if exchange.first_byte is None:
                raise
            exchange.detail = str(error)
            exchange.whole = False
            reset(request)
            raise ConnectionAbortedError(str(error)) from error
        finally:
            answer.close()
        return response

    async def _body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """Yield the request's body as it arrives; answer ``Expect: 100-continue`` first."""
        transport = request.transport
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and transport is not None:
            transport.write(_CONTINUE)
        while piece := await self._piece(request):
            yield piece

    async def _piece(self, request: web.BaseRequest) -> bytes:
        async with asyncio.timeout(self.stall_seconds):
            return await request.content.readany()


def _response(request: web.BaseRequest, answer: PassedAnswer) -> web.StreamResponse:
    headers = CIMultiDict(answer.headers)
    length = headers.get(hdrs.CONTENT_LENGTH, "")
    headers.popall(hdrs.CONTENT_LENGTH, None)  # aiohttp writes this field itself
    headers.setdefault(hdrs.SERVER, "mirror")  # else aiohttp adds its own name
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    if length.isascii() and length.isdigit():
        response.content_length = int(length)
    elif request.method != hdrs.METH_HEAD and answer.status not in _BODILESS:
        delimit(request, response, None)
    return response


_log = logging.getLogger(__name__)
_NAME_BYTES: Final = 16
_NANOSECONDS: Final = 1_000_000_000


class Pushes:
    """The time of the last push to each repository."""

    def __init__(self, directory: Path, keep_seconds: float) -> None:
        """Keep times for ``keep_seconds``; it must exceed the lifetime of upstream's answers."""
        self._directory = directory
        self._keep_seconds = keep_seconds
        self._own: dict[str, int] = {}

    def last(self, name: str) -> str:
        """Return a text that changes with each push; empty if there was none."""
        moment = self._own.get(name, 0)
        with contextlib.suppress(OSError):
            moment = max(moment, self._file(name).stat().st_mtime_ns)
        return str(moment) if moment else ""

    def note(self, name: str) -> None:
        """Record a push now, and drop times that are older than ``keep_seconds``."""
        now = time.time_ns()
        self._own = {each: at for each, at in self._own.items() if self._counts(at, now)}
        # Always later than the previous push, even if the clock was set back.
        moment = self._own[name] = max(now, int(self.last(name) or 0) + 1)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._file(name).touch()
            os.utime(self._file(name), ns=(moment, moment))
            for file in self._directory.iterdir():
                if not self._counts(file.stat().st_mtime_ns, now):
                    file.unlink(missing_ok=True)
        except OSError as error:
            _log.info("cannot report a push to the other processes: %s", error)

    def _counts(self, moment: int, now: int) -> bool:
        return now - moment < self._keep_seconds * _NANOSECONDS

    def _file(self, name: str) -> Path:
        hashed = hashlib.blake2b(name.encode(), digest_size=_NAME_BYTES)
        return self._directory / hashed.hexdigest()
