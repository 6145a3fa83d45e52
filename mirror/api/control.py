"""The operator's commands: ``/control/...`` on the control socket, beside the registry API.

Parses and encodes commands (JSON).  The commands themselves are in ``server``.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mirror.api.handlers import raw_path
from mirror.api.v1 import json_object, json_response
from mirror.http.server_options import Handler, Handlers
from mirror.oci.errors import ErrorCode, OciError
from mirror.user_error import UserError

#: Takes the members of a JSON object (none for a GET) and returns a value to encode as JSON.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]
Commands = Mapping[tuple[str, str], Command]

_ROOT: Final = "/control/"


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
            posted = request.method != "GET"
            answer = await command(json_object(await request.read()) if posted else {})
        except UserError as error:
            raise OciError(ErrorCode.UNKNOWN, str(error), status=409) from error
        return await json_response(answer)
