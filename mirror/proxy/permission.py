"""Which servers a client may reach through a tunnel.  Pure rules, without name resolution."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mirror.http.forwarded import lookup_address
from mirror.oci.glob import compile_glob, is_glob
from mirror.proxy.destination import Destination
from mirror.proxy.errors import TunnelError
from mirror.upstream.addresses import is_local, is_private

HTTPS_PORT: Final = 443
_STARS: Final = re.compile(r"\*+")


@dataclass(frozen=True, slots=True)
class Rule:
    """Hosts that match a glob, on one port or (None) on any port."""

    glob: str
    port: int | None = HTTPS_PORT

    @property
    def exact(self) -> bool:
        """Whether the rule names one host, so that the operator means exactly this host."""
        return not is_glob(self.glob)

    def matches(self, destination: Destination) -> bool:
        """Whether the rule applies to a server."""
        fits = self.port is None or self.port == destination.port
        return fits and compile_glob(self.glob).fullmatch(destination.host) is not None


def parse_rule(text: str) -> Rule:
    """Parse ``host``, ``host:port`` or ``host:*``; the host may be a glob, 443 is the default."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text.lower(), str(HTTPS_PORT)
    host = host.removeprefix("[").removesuffix("]")
    return Rule(_STARS.sub("*", host), None if port == "*" else int(port))


@dataclass(frozen=True, slots=True)
class Permission:
    """The rules for tunnels.

    ``private``: tunnels may lead into private networks.  ``barred``: hosts that get no tunnel.
    ``limited``: hosts of registries with ``allow`` or ``deny`` rules; these get a tunnel only if a
    rule names the host itself.  ``near``: only clients in private networks get tunnels, because no
    other clients are configured.
    """

    rules: Sequence[Rule]
    private: bool = False
    barred: frozenset[str] = frozenset()
    near: bool = False
    limited: frozenset[str] = frozenset()

    def check(self, destination: Destination, client: str) -> bool:
        """Check whether a client may reach a server; return whether private addresses are allowed.

        Raises:
            TunnelError: the client is not allowed to reach the server (403).
        """
        if self.near and client and not is_local(client):
            text = f"{client} is not in a private network; [access] networks can allow it"
            raise TunnelError(403, f"no tunnel to {destination}: {text}")
        if destination.host in self.barred:
            text = f"{destination.host} belongs to an upstream that is not enabled"
            raise TunnelError(403, f"{text}: set enabled = true in its table of [upstreams]")
        matching = [rule for rule in self.rules if rule.matches(destination)]
        if not matching:
            text = f'its operator allows it with "{destination}" in allow of [proxy]'
            raise TunnelError(403, f"this proxy opens no tunnel to {destination}; {text}")
        exact = any(rule.exact for rule in matching)
        if destination.host in self.limited and not exact:
            text = f"allow and deny of [upstreams] limit the repositories of {destination.host}"
            raise TunnelError(403, f'{text}: a tunnel needs "{destination}" in allow of [proxy]')
        return self.private or exact


def check_address(destination: Destination, address: str, *, private: bool) -> None:
    """Check one address of a server.

    Raises:
        TunnelError: the address is private, and ``private`` is false (403).
    """
    if not private and leads_inside(address):
        raise TunnelError(
            403,
            f"{destination} is at the private address {address}; the operator of this proxy allows "
            f'it with "{destination}" in allow of [proxy], or private = true',
        )


def leads_inside(address: str) -> bool:
    """Whether an address is invalid, is not public, or maps to an address that is not public."""
    return lookup_address(address) is None or is_private(address)
