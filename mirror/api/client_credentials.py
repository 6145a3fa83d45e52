"""Whose credentials a request carries, for which upstream, and how to ask for them.

A client that speaks to the mirror by the mirror's own name says nowhere which registry its
credentials are for.  The rule: they are for the upstream that lists the Host of the request in
``hosts``, and for no other; under any other Host they are for the one upstream that takes
clients' credentials and has no Host of its own.  What came in by proxy mode was meant for the
upstream that the client believes it speaks to.
"""

from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass

from mirror.http.exchange import Exchange
from mirror.oci.errors import ErrorCode, OciError
from mirror.upstream.credentials import NOBODY, Principal, Principals
from mirror.upstream.errors import DeniedError, RefusedError, UnauthorizedError


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """The rule, and the answers that go with it.

    ``hosts`` are all upstreams by the Host that means them, ``taking`` those that take clients'
    credentials, ``otherwise`` the one of these that has no Host; ``greet`` asks an upstream
    whether it knows a visitor.
    """

    hosts: Mapping[str, str]
    taking: Set[str]
    otherwise: str
    principals: Principals
    greet: Callable[[str, Principal], Awaitable[None]]

    def upstream(self, exchange: Exchange) -> str:
        """Whom the credentials in a request are for, empty where nobody looks at them."""
        if exchange.connected:
            return exchange.connected
        meant = self.hosts.get(exchange.origin.host.lower(), self.otherwise)
        return meant if meant in self.taking else ""

    def principal(self, exchange: Exchange, upstream: str, authorization: str) -> Principal | None:
        """Who asks something of an upstream; None where it is asked as ever."""
        if not upstream or upstream != self.upstream(exchange):
            return None
        if authorization:
            return self.principals.principal(authorization)
        return NOBODY if exchange.connected else None

    async def ping(self, exchange: Exchange, upstream: str, authorization: str) -> None:
        """Let a client that asks for ``/v2/`` know what is wanted of it.

        Raises:
            OciError, UpstreamError: it is to say who it is, or is not known.
        """
        if exchange.connected or not upstream or upstream != self.upstream(exchange):
            return
        if not authorization:
            raise _asked_for(upstream, f"the credentials you have for {upstream} are asked for")
        await self.greet(upstream, self.principals.principal(authorization))

    def refusal(self, exchange: Exchange, error: RefusedError, authorization: str) -> Exception:
        """What a client is told that upstream has something against."""
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
    # dockerd answers any challenge with what it has for the name it knows the mirror by.
    challenge = {"WWW-Authenticate": f'Basic realm="{upstream}", charset="UTF-8"'}
    return OciError(ErrorCode.UNAUTHORIZED, text, status=401, headers=challenge)
