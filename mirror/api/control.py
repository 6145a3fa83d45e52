"""The operator's commands: ``/control/...`` on the control socket, beside the registry API.

Parses and encodes commands (JSON).  The commands themselves are in ``server``.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mirror.api.handlers import raw_path
from mirror.http.server_options import Handler, Handlers
from mirror.oci.errors import ErrorCode, OciError
from mirror.user_error import UserError

#: Takes the members of a JSON object (none for a GET) and returns a value to encode as JSON.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
Commands = Mapping[tuple[str, str], Command]

_ROOT: Final = "/control/"
_AT_ONCE: Final = 100  # entries; encoding them takes a millisecond


@dataclass(frozen=True, slots=True)
class ControlRoutes:
    """Finds the handlers of requests on the control socket.

    ``commands`` is keyed by method and path.  Requests outside ``/control/`` go to ``others``, as
    on the port.
    """

    others: Handlers
    commands: Commands

    def handler(self, request: web.BaseRequest) -> Handler:
        """Return the handler of a request."""
        if raw_path(request).startswith(_ROOT):
            return self._obey
        return self.others.handler(request)

    async def _obey(self, request: web.BaseRequest) -> web.StreamResponse:
        place = (request.method, raw_path(request))
        command = self.commands.get(place)
        if command is None:
            text = f"this mirror has no {' '.join(place)}: mirror and command differ in version"
            raise OciError(ErrorCode.UNSUPPORTED, text, status=404)
        try:
            answer = await command(await _members(request))
        except UserError as error:
            raise OciError(ErrorCode.UNKNOWN, str(error), status=409) from error
        return web.Response(body=await _encoded(answer), content_type="application/json")


async def _encoded(answer: Any) -> bytes:
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


async def _members(request: web.BaseRequest) -> Mapping[str, Any]:
    """Return the members of the request's JSON object.

    Raises:
        OciError: the body is not a JSON object.
    """
    if request.method == "GET":
        return {}
    try:
        members = json.loads(await request.read() or b"{}")
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise OciError(ErrorCode.UNKNOWN, "the body must be a JSON object", status=400)
    return members
