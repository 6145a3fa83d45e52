"""Access checks: connection limits, client network, password.

Health checks need neither network nor password.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mirror.http.forwarded import Network, is_within
from mirror.http.htpasswd import Htpasswd
from mirror.http.responses import overloaded
from mirror.http.turns import LineFullError
from mirror.oci.challenge import parse_basic
from mirror.oci.errors import ErrorCode, OciError
from mirror.shares import client_name

#: The field that signs a request of another replica (see ``cluster.peers``).
REPLICA_FIELD: Final = "Mirror-Replica"
#: The field with the hash of a body that a replica posts (RFC 9530).
CONTENT_DIGEST: Final = "Content-Digest"
CheckReplica = Callable[[str, str, str, str], None]

_OPEN: Final = frozenset({"/healthz", "/readyz"})
_RETRY_SECONDS: Final = 5.0
#: How the refusal of a login begins.
WRONG_LOGIN: Final = "user or password is wrong"
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="mirror", charset="UTF-8"'}
_OVERRUN: Final = 1.25  # of the limit: up to here clients get 503, beyond it no answer


@dataclass(frozen=True, slots=True)
class Admission:
    """The access rules.

    With an empty ``networks`` every address is allowed; without ``users`` no password is required.
    Requests of other replicas need neither: ``check_replica`` checks their REPLICA_FIELD for the
    method, the path and the Range field of the request (of a POST: the CONTENT_DIGEST field), and
    raises OciError if it is wrong.
    """

    networks: Sequence[Network]
    users: Htpasswd | None
    check_replica: CheckReplica | None = None

    async def check(self, request: web.BaseRequest, client: str, refusal: str) -> str:
        """Check a request to the mirror's own port; return its user, empty if none is needed.

        ``refusal`` says which limit the request exceeds; it is empty within the limits.

        Raises:
            OciError: the request is refused (401, 403, 429 or 503).
        """
        if request.raw_path in _OPEN and not refusal:
            return ""
        if self.check_replica and REPLICA_FIELD in request.headers and not refusal:
            covered = CONTENT_DIGEST if request.method == "POST" else "Range"
            field, span = request.headers[REPLICA_FIELD], request.headers.get(covered, "")
            self.check_replica(field, request.method, request.raw_path, span)
            return ""
        self._check_place(client, refusal)
        given = request.headers.get("Authorization", "")
        user = await self._known_user(given, client)
        if user is None:
            what = WRONG_LOGIN if given else "this mirror asks for user and password"
            text = f"{what} (docker login, or auths of your client)"
            raise OciError(ErrorCode.UNAUTHORIZED, text, status=401, headers=_CHALLENGE)
        return user

    async def check_proxied(self, request: web.BaseRequest, client: str, refusal: str) -> str:
        """Check a request to the proxy port, as ``check`` does; 407 takes the place of 401.

        Raises:
            OciError: the request is refused (403, 407, 429 or 503).
        """
        self._check_place(client, refusal)
        given = request.headers.get("Proxy-Authorization", "")
        user = await self._known_user(given, client)
        if user is None:
            what = WRONG_LOGIN if given else "this proxy asks for user and password"
            text = f"{what} (HTTPS_PROXY=http://user:password@...)"
            headers = {"Proxy-Authenticate": _CHALLENGE["WWW-Authenticate"]}
            raise OciError(ErrorCode.UNAUTHORIZED, text, status=407, headers=headers)
        return user

    def _check_place(self, client: str, refusal: str) -> None:
        if refusal:
            raise overloaded(refusal, _RETRY_SECONDS)
        if self.networks and not self._is_near(client):
            text = f"{client} is not in a network that may use this mirror"
            raise OciError(ErrorCode.DENIED, f"{text} ([access] networks)", status=403)

    def is_open_to(self, client: str) -> bool:
        """Whether every request from an address is allowed, so that no request needs a check."""
        return self.users is None and (not self.networks or self._is_near(client))

    def _is_near(self, client: str) -> bool:
        # The file mode of a unix socket decides which users can open it.
        return not client or is_within(client, self.networks)

    async def _known_user(self, authorization: str, client: str) -> str | None:
        """Return the user of a right password; empty if no password is needed, None otherwise."""
        if self.users is None:
            return ""
        given = parse_basic(authorization)
        try:
            return given[0] if given and await self.users.knows(*given, client) else None
        except LineFullError as error:
            text = f"too many password checks for {client or 'a unix socket'} are waiting"
            headers = {"Retry-After": f"{_RETRY_SECONDS:.0f}"}
            raise OciError(ErrorCode.TOOMANYREQUESTS, text, status=429, headers=headers) from error


def content_digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


class ConnectionLimiter:
    """Counts connections by client.

    A client is an IPv4 address or an IPv6 /64 network.  Connections without an address (unix
    sockets, trusted proxies) have no limit per client.
    """

    def __init__(self, most: int, most_per_client: int, opened: Callable[[int], None]) -> None:
        """``opened`` is called with +1 and -1 for each connection that begins and ends."""
        self._opened = opened
        self._most = most
        self._most_per_client = most_per_client
        self._clients: Counter[str] = Counter()
        self._all = 0

    def limit(self, most: int, most_per_client: int) -> None:
        """Use other limits for new connections; open connections stay."""
        self._most = most
        self._most_per_client = most_per_client

    @property
    def overrun(self) -> bool:
        """Whether there are too many connections even to answer 503."""
        return self._all > self._most * _OVERRUN

    def enter(self, client: str) -> str:
        """Count a new connection; return why its requests must be refused, empty if allowed."""
        client = client and client_name(client)
        self._all += 1
        self._opened(1)
        self._clients[client] += 1
        if self._all > self._most:
            return f"too many connections ([limits] connections = {self._most})"
        return self._excess(client, "connections")

    def leave(self, client: str) -> None:
        self._all -= 1
        self._opened(-1)
        self._forget(client and client_name(client))

    @contextmanager
    def counting(self, client: str) -> Iterator[str]:
        """Count one request of a client behind a trusted proxy; yield the same as ``enter``.

        The proxy's connections are shared by its clients, so requests are counted instead.
        """
        client = client and client_name(client)
        self._clients[client] += 1
        try:
            yield self._excess(client, "requests at once")
        finally:
            self._forget(client)

    def _excess(self, client: str, what: str) -> str:
        if not client or self._clients[client] <= self._most_per_client:
            return ""
        limit = f"[limits] connections_per_client = {self._most_per_client}"
        return f"too many {what} from {client} ({limit})"

    def _forget(self, client: str) -> None:
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
