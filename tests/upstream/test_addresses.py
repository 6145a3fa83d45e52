"""Which addresses are not of the public Internet, in every form that leads to them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.upstream.addresses import is_local, is_private

SPECIAL_4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
    "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24",
    "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
SPECIAL_6 = (
    "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23",
    "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "4000::/3", "5f00::/16",
    "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip


@pytest.mark.parametrize("network", [*SPECIAL_4, *SPECIAL_6])
def test_a_special_network_is_special_from_its_first_address_to_its_last(network):
    parsed = ipaddress.ip_network(network)
    assert is_private(str(parsed[0]))
    assert is_private(str(parsed[-1]))


@pytest.mark.parametrize(
    "address",
    [
        *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "128.0.0.0"),
        *("168.63.129.15", "168.63.129.17", "169.253.255.255", "172.15.255.255", "172.32.0.0"),
        *("192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255"),
        *("198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "8.8.8.8"),
        *("2001:200::", "2001:db7:ffff::", "2001:db9::", "2003::", "2606:2800:220:1::1"),
        *("2620:4f:7fff::", "3ffe::", "3fff:1000::", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"),
    ],
)
def test_what_lies_beside_a_special_network_is_public(address):
    assert not is_private(address)


@given(st.sampled_from(SPECIAL_4), st.integers(min_value=0), st.sampled_from(["{}", "{}.", "{}%1"]))
def test_an_address_within_another_is_no_way_around(network, offset, form):
    parsed = ipaddress.ip_network(network)
    inner = parsed[offset % parsed.num_addresses]
    high = int(inner) << 80
    for outer in (
        ipaddress.IPv6Address(0xFFFF << 32 | int(inner)),  # mapped
        ipaddress.IPv6Address(int(inner)),  # compatible
        ipaddress.IPv6Address((0x64FF9B << 96) | int(inner)),  # NAT64
        ipaddress.IPv6Address((0x64FF9B0001 << 80) | int(inner)),  # NAT64 of a network's own
        ipaddress.IPv6Address((0x2002 << 112) | high),  # 6to4
        ipaddress.IPv6Address((0x2001 << 112) | (int(inner) ^ 0xFFFFFFFF)),  # Teredo
        inner,
    ):
        assert is_private(form.format(outer))


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.1", "0X7F.1", "127.1", "127.0.1", "0177.0.0.1", "127.1.",
     "017700000001", "10.0.0.1.", "256.0.0.1", "localhost", "LOCALHOST.", "a.localhost"],
)  # fmt: skip
def test_a_host_that_systems_read_as_an_address_is_no_name(host):
    assert is_private(host)


@pytest.mark.parametrize(
    "name", ["", "registry.example.com", "1.example.com", "0x7f.example.", "cafe", "mylocalhost"]
)
def test_a_name_is_not_special(name):
    assert not is_private(name)


@pytest.mark.parametrize(
    ("client", "local"),
    [
        *((each, True) for each in ("10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.1.1")),
        *((each, True) for each in ("172.31.0.1", "192.168.0.1", "::ffff:10.0.0.1", "::1")),
        *((each, True) for each in ("fd00::1", "fe80::1%eth0", "fec0::1")),
        *((each, False) for each in ("8.8.8.8", "2600::1", "2002:808:808::1", "192.88.99.1")),
        *((each, False) for each in ("240.0.0.1", "2001:0:808:808::1", "168.63.129.16", "")),
        *((each, False) for each in ("unknown", "localhost", "2130706433")),
    ],
)
def test_a_special_address_of_a_stranger_is_not_local(client, local):
    assert is_local(client) is local
