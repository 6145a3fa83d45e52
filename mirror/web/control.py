"""What only the operator may do: ``/control/...`` on the control socket, beside the registry API.

Knows how a command is asked and answered (JSON).  Must not know what any command does.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mirror.oci.errors import ErrorCode, OciError
from mirror.web.registry import raw_path
from mirror.web.routes import Handler, Handlers

#: From the members of a JSON object (none for a GET) to what is answered, as JSON too.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
Commands = Mapping[tuple[str, str], Command]

_ROOT: Final = "/control/"


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
        return web.json_response(answer)


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
