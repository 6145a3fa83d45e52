"""Where to listen, in every way it can be written."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.config import load
from mirror.config.addresses import TcpAddress, UnixAddress, lookup_outermost, parse_listen
from mirror.user_error import UserError
from tests.config.conftest import WriteToml


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.1.2.3:5000", TcpAddress("10.1.2.3", 5000)),
        ("mirror.lan:80", TcpAddress("mirror.lan", 80)),
        (":5000", TcpAddress("", 5000)),
        ("[::]:5000", TcpAddress("::", 5000)),
        ("[2001:db8::1]:0", TcpAddress("2001:db8::1", 0)),
        ("unix:/run/mirror/mirror.sock", UnixAddress(Path("/run/mirror/mirror.sock"))),
    ],
)
def test_an_address_is_read_and_written_alike(text, address):
    assert parse_listen(text) == address
    assert str(address) == text


@given(st.text(max_size=30) | st.from_regex(r"(unix:)?[\[\]:/0-9a-f.]+", fullmatch=True))
@example("unix:/.")
def test_whatever_is_written_is_an_address_or_a_mistake(text):
    try:
        address = parse_listen(text)
    except ValueError:
        return
    assert parse_listen(str(address)) == address


def test_the_file_says_one_or_several(write_toml: WriteToml):
    one = load(write_toml('[server]\nlisten = ":1"'))
    several = load(write_toml('[server]\nlisten = [":1", "unix:/run/m.sock"]'))
    assert one.server.listen == (":1",)
    assert several.server.addresses() == [TcpAddress("", 1), UnixAddress(Path("/run/m.sock"))]


def test_the_environment_separates_several_by_commas(monkeypatch):
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", "127.0.0.1:1, [::1]:2,unix:/run/m.sock")
    assert load().server.listen == ("127.0.0.1:1", "[::1]:2", "unix:/run/m.sock")


@pytest.mark.parametrize(
    ("listen", "told"),
    [
        ('["127.0.0.1:1", "nope"]', "server.listen.1: found 'nope', allowed: HOST:PORT"),
        ('":1,nope"', "server.listen.1: found 'nope', allowed: HOST:PORT"),
        ("[]", "server.listen: found [], allowed: at least one place to listen"),
        ('"unix:mirror.sock"', "server.listen: found 'unix:mirror.sock', allowed: HOST:PORT"),
        ("5000", "server.listen: found 5000, allowed: a list of texts"),
    ],
)
def test_a_mistake_among_several_says_which(listen, told, write_toml: WriteToml):
    with pytest.raises(UserError) as caught:
        load(write_toml(f"[server]\nlisten = {listen}"))
    (problem,) = caught.value.lines
    assert told in problem


@pytest.mark.parametrize("mode", ["rw", "888", "66", "06660", ""])
def test_a_mode_is_octal_digits(mode, write_toml: WriteToml):
    with pytest.raises(UserError, match=r"socket_mode: found .* allowed: a mode in octal digits"):
        load(write_toml(f'[server]\nsocket_mode = "{mode}"'))


@pytest.mark.parametrize(
    ("listen", "outermost"),
    [
        (["127.0.0.1:1", "unix:/m", "10.1.2.3:2", ":3"], "10.1.2.3:2"),
        (["unix:/m", "localhost:1", "[::1]:2"], "localhost:1"),
        (["unix:/m"], "None"),
    ],
)
def test_clients_are_told_the_address_that_they_can_reach(listen, outermost):
    assert str(lookup_outermost(map(parse_listen, listen))) == outermost
