"""Whom a request comes from: a trusted proxy's word, and nobody else's."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.http.forwarded import UNKNOWN, Origin, Proxies, parse_forwarded, plain_address

PROXIES = Proxies([ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/64")], True)
PROXY = "10.0.0.1"


def origin(*fields: tuple[str, str], peer: str = PROXY) -> Origin:
    return PROXIES.origin(Origin(peer, "http", "mirror.lan"), CIMultiDict(fields))


def client(name: str, *values: str) -> str:
    return origin(*((name, value) for value in values)).client


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.1", True),
        ("10.0.1.1", False),
        ("fd00::7", True),
        ("fd00::7%eth0", True),
        ("2001:db8::1", False),
        ("::ffff:10.0.0.1", True),
        ("", True),
        (UNKNOWN, False),
    ],
)
def test_the_networks_say_who_is_a_proxy(peer, trusted):
    assert PROXIES.trusts(peer) is trusted
    assert not Proxies().trusts(peer)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        (["6.6.6.6", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1,10.0.0.2,,10.0.0.3 "], "192.0.2.1"),
        (["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]:443, fd00::2"], "2001:db8::1"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, unknown"], UNKNOWN),
        (["192.0.2.1, 10.0.0.256, 10.0.0.2"], UNKNOWN),
        ([", ".join(["10.0.0.2"] * 40)], UNKNOWN),
        ([""], PROXY),
    ],
)
def test_the_rightmost_that_is_no_proxy_is_the_client(values, found):
    assert client("X-Forwarded-For", *values) == found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["for=192.0.2.1"], "192.0.2.1"),
        (["For=192.0.2.1;proto=https;by=10.0.0.1"], "192.0.2.1"),
        (['for="[2001:db8::1]:47011"'], "2001:db8::1"),
        (["for=6.6.6.6, for=192.0.2.1, for=10.0.0.2"], "192.0.2.1"),
        (["for=6.6.6.6", "for=192.0.2.1"], "192.0.2.1"),
        (["for=192.0.2.1, for=_hidden"], UNKNOWN),
        (["proto=https"], UNKNOWN),
        (["for=192.0.2.1;for=192.0.2.2"], UNKNOWN),
        # A quote that a client leaves open swallows what the proxy added.
        (['for=6.6.6.6;x=", for=192.0.2.1'], UNKNOWN),
        (['for=6.6.6.6;x=", for="[2001:db8::1]"'], UNKNOWN),
        (['for=6.6.6.6;x="\\", for="192.0.2.1";by=x'], UNKNOWN),
        (["for=192.0.2.1, " + "x" * 5000], UNKNOWN),
    ],
)
def test_the_standard_field_says_the_same(values, found):
    assert client("Forwarded", *values) == found


def test_two_fields_that_contradict_each_other_name_nobody():
    said = ("X-Forwarded-For", "192.0.2.1")
    assert origin(said, ("Forwarded", "for=10.0.0.2")).client == UNKNOWN
    assert origin(said, ("Forwarded", "for=192.0.2.1;proto=https")).client == "192.0.2.1"


@pytest.mark.parametrize(
    ("fields", "scheme", "host"),
    [
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "m.example.com:8443")],
         "https", "m.example.com:8443"),
        ([("Forwarded", 'for=192.0.2.1;host="m.example.com:443";proto=HTTPS')],
         "https", "m.example.com:443"),
        ([("X-Forwarded-Proto", "gopher"), ("X-Forwarded-Host", "a b")], "http", "mirror.lan"),
        ([("X-Forwarded-Proto", "http, https")], "https", "mirror.lan"),
        ([("X-Forwarded-Host", "[2001:db8::1]:80")], "http", "[2001:db8::1]:80"),
        ([], "http", "mirror.lan"),
    ],
)  # fmt: skip
def test_scheme_and_host_are_what_the_client_saw(fields, scheme, host):
    found = origin(*fields)
    assert (found.scheme, found.host) == (scheme, host)


def test_ipv4_on_a_socket_for_both_is_ipv4():
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("::1") == "::1"


addresses = st.ip_addresses().map(str)
rubbish = st.text(st.sampled_from('for=";,[]: \\\t0123456789.abcdefg_%'), max_size=60)


@given(rubbish, rubbish, rubbish)
def test_whatever_they_say_the_client_is_an_address_or_unknown(custom, standard, host):
    fields = [("X-Forwarded-For", custom), ("Forwarded", standard), ("X-Forwarded-Host", host)]
    found = origin(*fields)
    assert found.client == UNKNOWN or ipaddress.ip_address(found.client)
    assert found.scheme in {"http", "https"}
    for hop in parse_forwarded(standard):
        assert all(name == name.lower() for name in hop)


@given(st.lists(addresses | rubbish, max_size=5), addresses, st.integers(0, 5))
def test_what_a_client_writes_itself_is_never_believed(written, true, proxies):
    """Its proxies append what they see: the client first, then one another."""
    address = ipaddress.ip_address(true)
    true = str(getattr(address, "ipv4_mapped", None) or address)
    if PROXIES.trusts(true):
        return
    behind = [true, *[f"10.0.0.{number + 2}" for number in range(proxies)]]
    assert client("X-Forwarded-For", ", ".join([*written, *behind])) == true
    node = f'for="[{true}]"' if ":" in true else f"for={true}"
    hops = ", ".join([*(f"for={text}" for text in written), node])
    assert client("Forwarded", hops) in {true, UNKNOWN}
