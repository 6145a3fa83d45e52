"""Clients' credentials: the upstream that they are for, and the challenges that ask for them.

A client that addresses the mirror by the mirror's own name does not say which registry its
credentials are for.  The rule: they are only for the upstream that lists the request's Host in
``hosts``.  With any other Host they are for the one upstream that takes clients' credentials and
has no Host of its own.  In proxy mode they are for the upstream that the client addresses.
"""

from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass

from mirror.http.exchange import Exchange
from mirror.oci.errors import ErrorCode, OciError
from mirror.upstream.errors import DeniedError, RefusedError, UnauthorizedError
from mirror.upstream.login import NOBODY, Principal, Principals


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Decides which upstream a request's credentials are for, and makes the challenges.

    ``hosts`` maps a Host to its upstream.  ``taking`` are the upstreams that take clients'
    credentials, ``otherwise`` the one of them without a Host.  ``greet`` asks an upstream whether
    it accepts a principal's credentials.
    """

    hosts: Mapping[str, str]
    taking: Set[str]
    otherwise: str
    principals: Principals
    greet: Callable[[str, Principal], Awaitable[None]]

    def upstream(self, exchange: Exchange) -> str:
        """The upstream that a request's credentials are for; empty if they are ignored."""
        if exchange.connected:
            return exchange.connected
        host = exchange.origin.host.lower()
        meant = self.hosts.get(host) or self.hosts.get(host.removesuffix(":443"), self.otherwise)
        return meant if meant in self.taking else ""

    def principal(self, exchange: Exchange, upstream: str, authorization: str) -> Principal | None:
        """The principal for a request to ``upstream``; None for the mirror's own access."""
        if not upstream or upstream != self.upstream(exchange):
            return None
        if authorization:
            return self.principals.principal(authorization)
        return NOBODY if exchange.connected else None

    async def ping(self, exchange: Exchange, upstream: str, authorization: str) -> None:
        """Check the credentials of a request for ``/v2/``.

        Raises:
            OciError: the client must send credentials; the error has a challenge.
            UpstreamError: the upstream rejects the credentials or cannot be asked.
        """
        if exchange.connected or not upstream or upstream != self.upstream(exchange):
            return
        if not authorization:
            raise _asked_for(upstream, f"the credentials you have for {upstream} are asked for")
        await self.greet(upstream, self.principals.principal(authorization))

    def refusal(self, exchange: Exchange, error: RefusedError, authorization: str) -> Exception:
        """Translate an upstream's refusal for the client, with a challenge where one helps."""
        if exchange.connected and isinstance(error, UnauthorizedError):
            fields = sorted(
                error.challenges, key=lambda each: not each.lower().startswith("bearer")
            )
            headers = {"WWW-Authenticate": fields[0]} if fields else {}
            return OciError(ErrorCode.UNAUTHORIZED, str(error), status=401, headers=headers)
        if exchange.connected or error.upstream != self.upstream(exchange):
            return error
        if isinstance(error, DeniedError) and authorization:
            return error
        return _asked_for(error.upstream, str(error))


def _asked_for(upstream: str, text: str) -> OciError:
    # dockerd answers any challenge with its credentials for the mirror's name.
    challenge = {"WWW-Authenticate": f'Basic realm="{upstream}", charset="UTF-8"'}
    return OciError(ErrorCode.UNAUTHORIZED, text, status=401, headers=challenge)
