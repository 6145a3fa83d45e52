"""What only the operator may do: ``/control/...`` on the control socket, beside the registry API.

Knows how a command is asked and answered (JSON).  Must not know what any command does.
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

#: From the members of a JSON object (none for a GET) to what is answered, as JSON too.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
Commands = Mapping[tuple[str, str], Command]

_ROOT: Final = "/control/"
_AT_ONCE: Final = 100  # a millisecond


class CommandError(Exception):
    """A command cannot be obeyed; one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class ControlRoutes:
    """Finds the handler of what comes in by the control socket.

    ``commands`` are by method and path; everything not below ``/control/`` is as on the port.
    """

    others: Handlers
    commands: Commands

    def handler(self, request: web.BaseRequest) -> Handler:
        """The handler of a request."""
        if raw_path(request).startswith(_ROOT):
            return self._obey
        return self.others.handler(request)

    async def _obey(self, request: web.BaseRequest) -> web.StreamResponse:
        place = (request.method, raw_path(request))
        command = self.commands.get(place)
        if command is None:
            text = f"this mirror has no {' '.join(place)}: it and the command are two versions"
            raise OciError(ErrorCode.UNSUPPORTED, text, status=404)
        try:
            answer = await command(await _members(request))
        except CommandError as error:
            raise OciError(ErrorCode.UNKNOWN, str(error), status=409) from error
        return web.Response(body=await _encoded(answer), content_type="application/json")


async def _encoded(answer: Any) -> bytes:
    """The JSON of an answer; of a long list a few entries at a time, and others in between."""
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
    """What a command is told.

    Raises:
        OciError: it is no JSON object.
    """
    if request.method == "GET":
        return {}
    try:
        members = json.loads(await request.read() or b"{}")
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise OciError(ErrorCode.UNKNOWN, "a command is told a JSON object", status=400)
    return members
