"""What a client asks a proxy for is one host written one way and a port, or a mistake."""

import ipaddress
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.proxy.permission import (
    Destination,
    InvalidDestination,
    parse_absolute,
    parse_authority,
)


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("registry-1.docker.io:443", "registry-1.docker.io", 443),
        ("Registry-1.Docker.IO.:443", "registry-1.docker.io", 443),
        ("localhost:1", "localhost", 1),
        ("my_registry.lan:65535", "my_registry.lan", 65535),
        ("10.1.2.3:8443", "10.1.2.3", 8443),
        ("[::1]:443", "::1", 443),
        ("[2001:DB8:0::1]:443", "2001:db8::1", 443),
        ("[::ffff:10.0.0.1]:443", "::ffff:a00:1", 443),
        ("a:0443", "a", 443),
    ],
)
def test_a_server_is_written_one_way(target, host, port):
    assert parse_authority(target) == Destination(host, port)


@pytest.mark.parametrize(
    "target",
    [
        *("", ":", ":443", "a", "a:", "a:0", "a:65536", "a:999999", "a:-1", "a:+1", "a:4 4", "a:٤"),
        *("a b:443", " a:443", "a:443 ", "a\t:443", "a\n:443", "a\0:443", "a/b:443", "a?b:443"),
        *("u@a:443", "u:p@a:443", "http://a:443", "https://a/", "//a:443", "*:443", "a#b:443"),
        *("::1:443", "[::1]", "[::1", "::1]:443", "[]:443", "[a]:443", "[::1%eth0]:443", "[1]:443"),
        *("-a:443", "a-:443", "a..b:443", ".a:443", "a" * 64 + ":443", "a." * 127 + "a:443"),
        *("bücher.example:443", "127.1:443", "0x7f000001:443", "2130706433:443", "0177.0.0.1:443"),
        *("256.0.0.1:443", "1.2.3:443", "a.0x10:443", "1.2.3.4.5:443", "example.7:443"),
    ],
)
def test_what_is_no_server_is_told_in_one_line(target):
    with pytest.raises(InvalidDestination) as told:
        parse_authority(target)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 200


@given(st.text(max_size=80) | st.from_regex(r"[a-z0-9.\[\]:-]{0,40}(:[0-9]{0,6})?", fullmatch=True))
@example("[::]:443")
@example("0:0")
def test_whatever_is_asked_for_is_one_server_or_a_mistake(target):
    try:
        found = parse_authority(target)
    except InvalidDestination:
        return
    assert 0 < found.port < 65536
    assert found.host == found.host.lower()
    assert not re.search(r"[\s/@?#\[\]\\%]", found.host)
    assert parse_authority(str(found)) == found
    if re.fullmatch(r"[0-9.]*|.*:.*", found.host):
        assert str(ipaddress.ip_address(found.host)) == found.host


@pytest.mark.parametrize(
    ("target", "server", "path"),
    [
        ("http://r.lan:5000/v2/", "r.lan:5000", "/v2/"),
        ("http://r.lan/v2/?n=1", "r.lan:80", "/v2/?n=1"),
        ("HTTP://R.LAN", "r.lan:80", "/"),
        ("http://r.lan?a", "r.lan:80", "/?a"),
        ("http://[::1]:5000/", "[::1]:5000", "/"),
    ],
)
def test_a_whole_address_is_a_server_and_a_path(target, server, path):
    destination, rest = parse_absolute(target, 80)
    assert (str(destination), rest) == (server, path)


@pytest.mark.parametrize(
    "target", ["/v2/", "*", "", "https://r.lan/", "ftp://r.lan/", "http:///v2/", "http://u@r.lan/"]
)
def test_what_is_for_no_proxy_is_told(target):
    with pytest.raises(InvalidDestination):
        parse_absolute(target, 80)


@given(st.text(max_size=100))
def test_any_address_is_read_or_a_mistake(text):
    for target in (text, f"http://{text}"):
        try:
            _, path = parse_absolute(target, 80)
        except InvalidDestination:
            continue
        assert path.startswith("/")
