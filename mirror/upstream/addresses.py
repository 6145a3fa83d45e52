"""Special addresses, outside the public Internet, and the names that may not lead there.

The list follows the IANA special-purpose address registries (RFC 6890).  The properties of
``ipaddress`` are not used because they differ between patch versions of Python.
"""

import ipaddress
import re
import string
from typing import Final
from urllib.parse import quote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Addresses of clients in a private network: the host itself, its link, its organisation.
_LOCAL: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared address space (RFC 6598), also used by overlay networks
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
            "fec0::/10",
        ),
    )
)
_SPECIAL_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # the host of a virtual machine at Azure
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",  # with the broadcast address
        ),
    )
)
#: Special parts of the global unicast addresses; all IPv6 outside of these is special (RFC 4291).
_SPECIAL_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # with Teredo, which holds an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4, which holds an IPv4 address
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
#: Prefixes that lead to the IPv4 address in the last 32 bits: mapped (RFC 4291), NAT64 (RFC 6052).
_EMBEDDING: Final = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
_LOW: Final = (1 << 32) - 1
#: Texts that systems read as an IPv4 address: 127.1, 0x7f000001, 2130706433 (``inet_aton``).
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)", re.ASCII | re.DOTALL)


def is_private(host: str) -> bool:
    """Whether a host is a special address.  Of names, only those of this machine are special.

    A numeric host that is not an address in the usual form counts as special, because programs
    read such forms in different ways.
    """
    plain = host.partition("%")[0].rstrip(".").lower()
    address = _parse(plain)
    if address is None:
        own = plain == "localhost" or plain.endswith(".localhost")  # RFC 6761, 6.3
        return own or _NUMERIC.fullmatch(plain) is not None
    if isinstance(address, ipaddress.IPv6Address):
        if address not in _GLOBAL_UNICAST:
            return True
        return any(address in network for network in _SPECIAL_6)
    return any(address in network for network in _SPECIAL_4)


def is_local(client: str) -> bool:
    """Whether the address of a client is in a private network.

    Stricter than :func:`is_private`: a client on the Internet can have a special address (6to4).
    """
    address = _parse(client.partition("%")[0])
    return address is not None and any(address in network for network in _LOCAL)


def _parse(text: str) -> Address | None:
    """Return the address, or the embedded IPv4 address; None if the text is not an address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(address) & _LOW)
    return address


def as_ascii(address: str) -> str:
    """Return an address of a header field with what an address cannot have escaped, and no more.

    A signature covers the rest byte for byte.
    """
    return quote(address.strip(), safe=string.punctuation, errors="surrogateescape")


class PrivateAddressError(OSError):
    """A public registry redirects to a private address."""
