"""Who is let through where."""

import asyncio
import socket

import pytest

from mirror.proxy.permission import (
    Destination,
    Permission,
    TunnelError,
    check_address,
    leads_inside,
    parse_authority,
    parse_rule,
)
from mirror.proxy.tunnel import Connector


def permission(*rules: str, **more) -> Permission:
    return Permission([parse_rule(text) for text in rules], **more)


@pytest.mark.parametrize(
    ("rules", "target", "private"),
    [
        (["*"], "auth.docker.io:443", False),
        (["*"], "auth.docker.io:80", None),
        (["*"], "auth.docker.io:22", None),
        (["*:*"], "auth.docker.io:22", False),
        (["*.docker.io"], "auth.docker.io:443", False),
        (["*.docker.io"], "docker.io:443", None),
        (["**.docker.io"], "auth.docker.io:443", False),
        (["**"], "auth.docker.io:443", False),
        (["a?th.docker.io"], "auth.docker.io:443", False),
        (["*.docker.io"], "docker.io.evil.example:443", None),
        (["auth.docker.io"], "auth.docker.io:443", True),
        (["Auth.Docker.io"], "auth.docker.io:443", True),
        (["git.lan:8443"], "git.lan:8443", True),
        (["git.lan:8443"], "git.lan:443", None),
        (["*", "git.lan"], "git.lan:443", True),
        (["10.1.2.3"], "10.1.2.3:443", True),
        (["[::1]:5000"], "[::1]:5000", True),
        (["[::1]"], "[::1]:443", True),
        ([], "auth.docker.io:443", None),
    ],
)
def test_rules_name_hosts_and_ports(rules, target, private):
    allowed = permission(*rules)
    if private is None:
        with pytest.raises(TunnelError) as told:
            allowed.check(parse_authority(target), "10.0.0.1")
        assert told.value.status == 403
        assert f'"{target}" in allow of [proxy]' in told.value.message
    else:
        assert allowed.check(parse_authority(target), "10.0.0.1") is private


@pytest.mark.parametrize(
    ("client", "let_in"),
    [
        *(("10.1.2.3", True), ("192.168.0.1", True), ("127.0.0.1", True), ("fe80::1%eth0", True)),
        *(("fd00::1", True), ("", True), ("8.8.8.8", False), ("2600::1", False)),
        *(("unknown", False), ("2002:808:808::1", False), ("192.88.99.1", False)),
    ],
)
def test_strangers_are_let_through_nowhere_unless_named(client, let_in):
    target = Destination("auth.docker.io", 443)
    assert permission("*").check(target, client) is False
    near = permission("*", near=True)
    if let_in:
        assert near.check(target, client) is False
        return
    with pytest.raises(TunnelError, match=r"\[access\] networks"):
        near.check(target, client)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        *((each, True) for each in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1")),
        *((each, True) for each in ("169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1")),
        *((each, True) for each in ("::1", "::", "fe80::1", "fe80::1%2", "fd00::1", "ff02::1")),
        *((each, True) for each in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::")),
        *((each, True) for each in ("64:ff9b:1::1", "2001::1", "::a00:1", "fec0::1", "192.0.0.8")),
        *((each, True) for each in ("168.63.129.16", "198.18.0.1", "3fff::1", "5f00::1", "x.test")),
        *((each, False) for each in ("8.8.8.8", "2600::1", "::ffff:8.8.8.8", "64:ff9b::808:808")),
    ],
)
def test_addresses_that_lead_inside_are_known_in_every_form(address, inside):
    assert leads_inside(address) is inside
    target = Destination("x.test", 443)
    check_address(target, address, private=True)
    if inside:
        with pytest.raises(TunnelError, match="private = true"):
            check_address(target, address, private=False)


# What a name resolves to.


class Names:
    """A name server that says something else every time."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.answers.pop(0)
        ]


@pytest.fixture
async def listening():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield Destination("x.test", server.sockets[0].getsockname()[1])


async def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_connected_to(listening):
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    connected = await Connector(5, names.resolve).connect(listening, private=True)
    assert connected.getpeername() == ("127.0.0.1", listening.port)
    assert names.answers == [["10.0.0.1"]], "nobody asked again"
    connected.close()


async def test_a_name_that_is_public_first_and_private_then_gets_nowhere_inside(listening):
    """The check and the connection go by one answer, so a second one cannot matter."""
    names = Names(["127.0.0.1"], ["127.0.0.1"])
    connector = Connector(5, names.resolve)
    for _ in range(2):
        with pytest.raises(TunnelError) as told:
            await connector.connect(listening, private=False)
        assert told.value.status == 403
        assert "127.0.0.1" in told.value.message


async def test_of_several_addresses_only_those_are_used_that_may_be(listening):
    names = Names(["10.0.0.1", "192.0.2.1"])
    with pytest.raises(TunnelError, match="private address"):
        await Connector(5, names.resolve).connect(listening, private=False)


async def test_a_name_that_does_not_resolve_is_502():
    async def resolve(host: str, port: int):
        raise OSError

    with pytest.raises(TunnelError, match="does not resolve") as told:
        await Connector(5, resolve).connect(Destination("x.test", 443), private=False)
    assert told.value.status == 502


async def test_a_server_that_does_not_answer_is_504_and_one_that_refuses_502():
    async def slowly(host: str, port: int):
        await asyncio.sleep(3600)

    with pytest.raises(TunnelError) as told:
        await Connector(0.02, slowly).connect(Destination("x.test", 443), private=True)
    assert told.value.status == 504
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = Destination("127.0.0.1", closed.getsockname()[1])
        with pytest.raises(TunnelError) as told:
            await Connector(5).connect(place, private=True)
    assert told.value.status == 502
    assert str(told.value).endswith(": connection refused")
