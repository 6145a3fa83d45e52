"""Which proxy leads where, by the rules of Go."""

import pytest

from mirror.upstream.proxies import (
    InvalidProxyError,
    NoProxy,
    configured_proxies,
    environment_proxies,
)

PROXY = "http://p.lan:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "direct"),
    [
        # As in httpproxy's own tests.
        *(("foobar.com", "foobar.com", 80, True), ("foobar.com", "www.foobar.com", 80, True)),
        *((".foobar.com", "foobar.com", 80, False), (".foobar.com", "www.foobar.com", 80, True)),
        *(("*.foobar.com", "foobar.com", 80, False), ("*.foobar.com", "a.foobar.com", 80, True)),
        *(("foobar.com", "myfoobar.com", 80, False), ("*foobar.com", "foobar.com", 80, False)),
        *(("FooBar.com", "foobar.COM", 80, True), (" a.lan , b.lan ", "b.lan", 80, True)),
        *(("a.lan:80", "a.lan", 80, True), ("a.lan:80", "a.lan", 443, False)),
        *((".a.lan:80", "x.a.lan", 80, True), ("*.a.lan:80", "x.a.lan", 443, False)),
        *(("10.0.0.0/8", "10.1.2.3", 443, True), ("10.0.0.0/8", "11.1.2.3", 443, False)),
        *(("10.1.2.3/8", "10.200.0.1", 443, True), ("10.0.0.0/8", "a10.lan", 443, False)),
        *(("10.0.0.0/8", "::ffff:10.1.2.3", 443, True), ("fd00::/8", "fd00::1", 443, True)),
        *(("10.1.2.3", "10.1.2.3", 443, True), ("10.1.2.3:80", "10.1.2.3", 443, False)),
        *(("10.1.2.3:443", "10.1.2.3", 443, True), ("[fd00::1]:443", "fd00::1", 443, True)),
        *(("[fd00::1]:443", "fd00::1", 80, False), ("fd00::1", "fd00:0::1", 80, True)),
        *(("*", "anything.example", 443, True), ("a.lan,*", "anything.example", 443, True)),
        *((":443", "a.lan", 443, False), (".", "a.lan", 443, False), (",,", "a.lan", 443, False)),
        *(("bücher.lan", "xn--bcher-kva.lan", 443, True), ("a.lan:http", "a.lan", 80, False)),
        # This machine is never asked through a proxy.
        *(("", "localhost", 80, True), ("", "127.0.0.1", 80, True), ("", "127.9.9.9", 80, True)),
        *(("", "::1", 80, True), ("", "::ffff:127.0.0.1", 80, True), ("", "10.0.0.1", 80, False)),
    ],
)  # fmt: skip
def test_what_is_asked_without_a_proxy(no_proxy, host, port, direct):
    assert NoProxy(no_proxy).covers(host, port) is direct
    found = environment_proxies({"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert (found.lookup("https", host, port) is None) is direct


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": PROXY}, f"{PROXY} (HTTP_PROXY)", None),
        ({"https_proxy": PROXY}, None, f"{PROXY} (https_proxy)"),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://q"}, None, f"{PROXY} (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "", "https_proxy": PROXY}, None, f"{PROXY} (https_proxy)"),
        ({"HTTP_PROXY": "p.lan:3128"}, f"{PROXY} (HTTP_PROXY)", None),
        ({"HTTP_PROXY": "me:hunter2@p.lan:3128"}, f"{PROXY} (HTTP_PROXY)", None),
        ({"HTTPS_PROXY": "https://p.lan"}, None, "https://p.lan (HTTPS_PROXY)"),
        ({"ALL_PROXY": PROXY, "all_proxy": PROXY}, None, None),
        ({"HTTP_PROXY": PROXY, "no_proxy": "r.lan"}, None, None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "x", "no_proxy": "r"}, f"{PROXY} (HTTP_PROXY)", None),
        ({"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": PROXY, "REQUEST_METHOD": "GET"}, None, None),
        ({"HTTPS_PROXY": PROXY, "REQUEST_METHOD": "GET"}, None, f"{PROXY} (HTTPS_PROXY)"),
    ],
)  # fmt: skip
def test_the_environment_names_a_proxy_per_scheme(environment, http, https):
    found = environment_proxies(environment)
    for scheme, expected in (("http", http), ("https", https)):
        proxy = found.lookup(scheme, "r.lan", 5000)
        assert (None if proxy is None else str(proxy)) == expected


@pytest.mark.parametrize(
    "text",
    ["socks5://p:1", "SOCKS5H://me:hunter2@p:1", "ftp://p", "http://", "http://p:0", "http://p:99999",
     "http://me:hunter2@", "http://[::1", "http://p lan", "p\nlan", "//p:1", ":3128"],
)  # fmt: skip
def test_what_is_no_http_proxy_is_one_line_without_a_secret(text):
    with pytest.raises(InvalidProxyError) as told:
        environment_proxies({"HTTPS_PROXY": text})
    (line,) = str(told.value).splitlines()
    assert line.startswith("HTTPS_PROXY names ")
    assert "hunter2" not in line + repr(told.value)


def test_a_configured_proxy_is_for_every_server():
    found = configured_proxies("http://me:hunter2@p.lan:3128", "[fetch] proxy")
    for host in ("registry.example.com", "10.0.0.1", "127.0.0.1"):
        proxy = found.lookup("http", host, 80)
        assert str(proxy) == f"{PROXY} ([fetch] proxy)"
        assert "hunter2" not in repr(proxy)
