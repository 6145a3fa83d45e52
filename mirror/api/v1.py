"""The JSON API, ``/api/v1/...`` as ``docs/api.md`` describes it, and the operator's commands.

Reading needs what pulling needs.  Changes also need the token of ``mirror token``.  Commands are
``/control/...`` on the control socket, beside the registry API.  The functions that supply the data
and execute the commands are in ``server``.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mirror.api.handlers import raw_path
from mirror.http.admission import CONTENT_DIGEST, REPLICA_FIELD, content_digest
from mirror.http.server_options import Handler, Handlers
from mirror.http.token import TOKEN_FIELD, Tokens, small_body
from mirror.oci.errors import ErrorCode, OciError
from mirror.store.interface import IndexUnavailableError
from mirror.user_error import UserError

ROOT: Final = "/api/v1/"
#: Where replicas post the blocks of commands to each other.
REPLICA_BLOCKS: Final = f"{ROOT}replica-blocks"
#: Takes the parameters of the query, and returns a value to encode; None: there is no such thing.
Reading = Callable[[Mapping[str, str]], Awaitable[Any]]
#: Takes the name of an image, and the operator's reason, which may be empty.
Change = Callable[[str, str], Awaitable[Any]]
#: Takes the members of a JSON object (none for a GET) and returns a value to encode as JSON.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
Commands = Mapping[tuple[str, str], Command]

_CONTROL: Final = "/control/"
_HEADERS: Final = {"Cache-Control": "no-store"}
_MOST_POSTED_BYTES: Final = 1024 * 1024
_AT_ONCE: Final = 100  # entries; encoding them takes a millisecond


@dataclass(frozen=True, slots=True)
class JsonApi:
    """Answers requests for the JSON API; both tables are keyed by the last part of the path."""

    readings: Mapping[str, Reading]
    changes: Mapping[str, Change]
    tokens: Tokens

    async def read(self, request: web.BaseRequest) -> web.Response:
        """Answer with data.

        Raises:
            OciError: there is no such data, or the cache cannot be read.
        """
        reading = self.readings[request.path.removeprefix(ROOT)]
        try:
            value = await reading(request.rel_url.query)
        except (OSError, IndexUnavailableError) as error:
            text = f"the cache cannot be read: {error}"
            raise OciError(ErrorCode.UNAVAILABLE, text, status=503) from error
        if value is None:
            raise OciError(ErrorCode.NAME_UNKNOWN, "this image is not in the cache", status=404)
        return await json_response(value)

    async def change(self, request: web.BaseRequest) -> web.Response:
        """Make a change, if the request carries the token.

        Raises:
            OciError: the token is missing or wrong (403), or the change is impossible.
        """
        if not await self.tokens.allows(request):
            text = f"changes need the token of `mirror token` in the field {TOKEN_FIELD}"
            raise OciError(ErrorCode.DENIED, text, status=403)
        change = self.changes[request.path.removeprefix(ROOT)]
        members = json_object(await small_body(request))
        image, reason = members.get("image"), members.get("reason", "")
        if not isinstance(image, str) or not isinstance(reason, str):
            text = 'the body must be {"image": "NAME"}, or {"image": "NAME", "reason": "TEXT"}'
            raise OciError(ErrorCode.UNKNOWN, text, status=400)
        try:
            return await json_response(await change(image, reason))
        except UserError as error:
            raise OciError(ErrorCode.UNKNOWN, str(error), status=409) from error


@dataclass(frozen=True, slots=True)
class ReplicaPost:
    """Takes JSON objects from other replicas, which have signed the hash of the body."""

    receive: Callable[[Mapping[str, Any]], Awaitable[Any]]

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer a request; admission has checked REPLICA_FIELD for the CONTENT_DIGEST field.

        Raises:
            OciError: it has no REPLICA_FIELD, or another body (403), or cannot be used.
        """
        body = b""
        if REPLICA_FIELD in request.headers:  # strangers do not fill the memory with bodies
            body = await small_body(request, _MOST_POSTED_BYTES)
        if not body or request.headers.get(CONTENT_DIGEST) != content_digest(body):
            raise OciError(ErrorCode.DENIED, "no replica has signed this body", status=403)
        return await json_response(await self.receive(json_object(body)))


@dataclass(frozen=True, slots=True)
class ControlRoutes:
    """Finds the handlers of requests on the control socket.

    ``commands`` is keyed by method and path.  Requests outside ``/control/`` go to ``others``, as
    on the port.
    """

    others: Handlers
    commands: Commands

    def handler(self, request: web.BaseRequest) -> Handler:
        if raw_path(request).startswith(_CONTROL):
            return self._obey
        return self.others.handler(request)

    async def _obey(self, request: web.BaseRequest) -> web.StreamResponse:
        place = (request.method, raw_path(request))
        command = self.commands.get(place)
        if command is None:
            text = f"this mirror has no {' '.join(place)}: mirror and command differ in version"
            raise OciError(ErrorCode.UNSUPPORTED, text, status=404)
        try:
            posted = request.method != "GET"
            answer = await command(json_object(await request.read()) if posted else {})
        except UserError as error:
            raise OciError(ErrorCode.UNKNOWN, str(error), status=409) from error
        return await json_response(answer)


async def json_response(value: Any) -> web.Response:
    """Return a response that no cache stores."""
    body = await encoded(value)
    return web.Response(body=body, content_type="application/json", headers=_HEADERS)


def json_object(body: bytes) -> Mapping[str, Any]:
    """Return the members of a JSON object; an empty body is an empty object.

    Raises:
        OciError: the body is not a JSON object.
    """
    try:
        members = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise OciError(ErrorCode.UNKNOWN, "the body must be a JSON object", status=400)
    return members


async def encoded(answer: Any) -> bytes:
    """Encode an answer as JSON; long lists in steps, so that other requests run in between."""
    if not isinstance(answer, dict):
        return json.dumps(answer).encode()
    members = []
    for name, value in answer.items():
        text = json.dumps(value) if not isinstance(value, list) else await _encoded_list(value)
        members.append(f"{json.dumps(name)}: {text}")
    return f"{{{', '.join(members)}}}".encode()


async def _encoded_list(entries: Sequence[Any]) -> str:
    parts: list[str] = []
    for start in range(0, len(entries), _AT_ONCE):
        parts += map(json.dumps, entries[start : start + _AT_ONCE])
        await asyncio.sleep(0)
    return f"[{', '.join(parts)}]"
