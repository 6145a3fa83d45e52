"""Which servers a client is let through to.  Pure rules; what a name resolves to comes later."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from mirror.http.forwarded import lookup_address
from mirror.proxy.destination import Destination
from mirror.proxy.errors import TunnelError
from mirror.upstream.addresses import is_local, is_private

HTTPS_PORT: Final = 443
_WILD: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Rule:
    """Hosts by a glob, on one port or (None) on any."""

    glob: str
    port: int | None = HTTPS_PORT

    @property
    def exact(self) -> bool:
        """Whether it names one host, which somebody then has thought of."""
        return _WILD.isdisjoint(self.glob)

    def matches(self, destination: Destination) -> bool:
        """Whether it is about this server."""
        fits = self.port is None or self.port == destination.port
        return fits and fnmatchcase(destination.host, self.glob)


def parse_rule(text: str) -> Rule:
    """``host``, ``host:port`` or ``host:*``, where a host may be a glob."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text.lower(), str(HTTPS_PORT)
    host = host.removeprefix("[").removesuffix("]")
    return Rule(host, None if port == "*" else int(port))


@dataclass(frozen=True, slots=True)
class Permission:
    """The rules.

    ``private``: also into private networks.  ``barred`` are hosts that nobody is let through to;
    ``limited`` those of registries of which only some repositories may be had, to which a tunnel
    leads where a rule names the host itself.
    ``near``: only for clients in private networks, for nobody said which others may.
    """

    rules: Sequence[Rule]
    private: bool = False
    barred: frozenset[str] = frozenset()
    near: bool = False
    limited: frozenset[str] = frozenset()

    def check(self, destination: Destination, client: str) -> bool:
        """Let a client through to a server, or not; whether private addresses are fine there.

        Raises:
            TunnelError: it is not let through.
        """
        if self.near and client and not is_local(client):
            text = f"{client} is in no private network; [access] networks says who else may"
            raise TunnelError(403, f"nobody is let through to {destination}: {text}")
        if destination.host in self.barred:
            text = f"{destination.host} belongs to an upstream that is not enabled"
            raise TunnelError(403, f"{text}: enabled = true in its table of [upstreams]")
        matching = [rule for rule in self.rules if rule.matches(destination)]
        if not matching:
            text = f'its operator allows it with "{destination}" in allow of [proxy]'
            raise TunnelError(403, f"this proxy lets nobody through to {destination}; {text}")
        exact = any(rule.exact for rule in matching)
        if destination.host in self.limited and not exact:
            text = f"allow and deny of [upstreams] limit what may be had of {destination.host}"
            raise TunnelError(403, f'{text}: a tunnel takes "{destination}" in allow of [proxy]')
        return self.private or exact


def check_address(destination: Destination, address: str, *, private: bool) -> None:
    """Let a client through to an address that a server has, or not.

    Raises:
        TunnelError: it is a private one, and ``private`` ones are not fine.
    """
    if not private and leads_inside(address):
        raise TunnelError(
            403,
            f"{destination} is at the private address {address}; the operator of this proxy allows "
            f'it with "{destination}" in allow of [proxy], or private = true',
        )


def leads_inside(address: str) -> bool:
    """Whether an address is not one of the public Internet, or stands for one that is not."""
    return lookup_address(address) is None or is_private(address)
