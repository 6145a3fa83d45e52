"""The client behind a trusted proxy, from ``Forwarded`` and ``X-Forwarded-*``.

Reads ``Forwarded`` (RFC 7239) and ``X-Forwarded-For``, ``-Proto``, ``-Host``, from trusted proxies
only.  Every proxy appends the address it saw on the right, so entries are read from the right as
long as they name trusted proxies.  The first other address is the client; entries left of it may
be forged by that client.  If ``Forwarded`` and ``X-Forwarded-For`` name different clients, one of
them is forged and the client is unknown.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = CIMultiDictProxy[str] | CIMultiDict[str]

#: A client whose address is not known.  It is in no network, and it is not the proxy.
UNKNOWN: Final = "unknown"
_SCHEMES: Final = frozenset({"http", "https"})
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # RFC 9110's word for it
_PAIR: Final = re.compile(rf'[ \t]*({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*")[ \t]*', re.ASCII)
_MOST_HOPS: Final = 32
_MOST_BYTES: Final = 4096
_NODE: Final = re.compile(r"\[([^\]]*)\](?::\w*)?|([^:]*)(?::\w*)?|(.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Origin:
    """The client of a request, and the scheme and host by which the client addressed the mirror.

    ``client`` is an address, empty for a unix socket; ``told``: a trusted proxy named the client.
    """

    client: str = ""
    scheme: str = "http"
    host: str = ""
    told: bool = False


def plain_address(text: str) -> str:
    """Return an address without the ``::ffff:`` that a dual-stack socket puts before IPv4."""
    return text.removeprefix("::ffff:") if "." in text else text


@dataclass(frozen=True, slots=True)
class Proxies:
    """The trusted proxies: networks and, with ``unix``, the peers on the mirror's unix sockets."""

    networks: Sequence[Network] = ()
    unix: bool = False

    def trusts(self, peer: str) -> bool:
        """Whether a peer is a trusted proxy; ``peer`` is an address, empty for a unix socket."""
        if not peer:
            return self.unix
        return is_within(peer, self.networks)

    def origin(self, seen: Origin, headers: Headers) -> Origin:
        """Return the origin of a request that a trusted proxy sent; ``seen`` is the proxy."""
        claims = [self._by_standard(headers), self._by_custom(headers)]
        named = [claim for claim in claims if claim.client]
        clients = {claim.client for claim in named}
        origin = replace(seen, scheme=claims[1].scheme or claims[0].scheme or seen.scheme)
        origin = replace(origin, host=claims[1].host or claims[0].host or seen.host)
        if not named:
            return origin
        return replace(origin, client=clients.pop() if len(clients) == 1 else UNKNOWN, told=True)

    def _by_standard(self, headers: Headers) -> Origin:
        """The origin that Forwarded names; empty without that field."""
        claim = Origin(scheme="")
        field = ", ".join(headers.getall("Forwarded", []))
        if len(field) > _MOST_BYTES:
            return replace(claim, client=UNKNOWN)
        for hop in reversed(list(parse_forwarded(field))):
            claim = Origin(
                _node(hop.get("for", "")), _scheme(hop.get("proto")), _host(hop.get("host"))
            )
            if not self._is_proxy(claim.client):
                break
        return claim

    def _by_custom(self, headers: Headers) -> Origin:
        """The origin that X-Forwarded-* names; empty without those fields."""
        client = ""
        field = ",".join(headers.getall("X-Forwarded-For", []))
        hops = field[-_MOST_BYTES:].rsplit(",", _MOST_HOPS)
        for hop in reversed(hops):
            if not hop.strip():
                continue
            client = _node(hop.strip())
            if not self._is_proxy(client):
                break
        return Origin(
            client,
            _scheme(_last(headers, "X-Forwarded-Proto")),
            _host(_last(headers, "X-Forwarded-Host")),
        )

    def _is_proxy(self, client: str) -> bool:
        return client != UNKNOWN and self.trusts(client)


def lookup_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address and drop its zone; IPv4-mapped IPv6 becomes IPv4.  None if it is invalid."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_within(text: str, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks; False for a text that is no address."""
    address = lookup_address(text) if networks else None
    return address is not None and any(address in network for network in networks)


def parse_forwarded(field: str) -> Iterator[Mapping[str, str]]:
    """Yield the hops of a Forwarded field (RFC 7239, 4); a malformed hop is empty."""
    position = 0
    while position <= len(field):
        end = _end_of_element(field, position)
        element = field[position:end]
        if element.strip():
            yield _parameters(element)
        position = end + 1


def _end_of_element(field: str, start: int) -> int:
    quoted = escaped = False
    for position in range(start, len(field)):
        character = field[position]
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            return position
    return len(field)


def _parameters(element: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None or element[pair.end() : pair.end() + 1] not in {"", ";"}:
            return {}
        name, value = pair[1].lower(), pair[2]
        if name in found:  # RFC 7239, 4: each parameter at most once
            return {}
        found[name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        position = pair.end() + 1
    return found


def _node(text: str) -> str:
    """The address in ``192.0.2.1:47011``, ``[2001:db8::1]``, ``2001:db8::1``, without the port."""
    if (address := lookup_address(text)) is not None:
        return str(address)
    node = _NODE.fullmatch(text)
    address = lookup_address((node[1] or node[2] or "") if node else "")
    return UNKNOWN if address is None else str(address)


def _last(headers: Headers, name: str) -> str:
    return ",".join(headers.getall(name, [])).rpartition(",")[2].strip()


def _scheme(text: str | None) -> str:
    return text.lower() if text and text.lower() in _SCHEMES else ""


def _host(text: str | None) -> str:
    return text if text and _HOST.fullmatch(text) else ""
