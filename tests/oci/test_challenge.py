"""WWW-Authenticate."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.challenge import Challenge, parse_challenges

TOKEN = st.text("abcXYZ019!#$%&'*+.^_`|~-", min_size=1, max_size=8)
NAME = TOKEN.map(str.lower)
CHALLENGES = st.lists(
    st.builds(Challenge, NAME, st.dictionaries(NAME, st.text(max_size=12), max_size=4)), max_size=4
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def written(challenge: Challenge) -> str:
    parameters = (f"{name}={quoted(value)}" for name, value in challenge.parameters.items())
    return f"{challenge.scheme} {', '.join(parameters)}".strip()


def test_docker_hub_s_challenge_is_read():
    header = (
        'Bearer realm="https://auth.example/token",service="registry.example",scope="a:b:pull,push"'
    )
    assert parse_challenges(header) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.example/token",
                "service": "registry.example",
                "scope": "a:b:pull,push",
            },
        )
    ]


@given(CHALLENGES)
def test_any_list_of_challenges_is_read_back(challenges: list[Challenge]):
    assert parse_challenges(", ".join(map(written, challenges))) == challenges


@given(CHALLENGES)
def test_schemes_and_names_are_read_whatever_their_case(challenges: list[Challenge]):
    header = ", ".join(
        f"{c.scheme.upper()} {','.join(f'{name.upper()}={len(name)}' for name in c.parameters)}"
        for c in challenges
    )
    assert parse_challenges(header) == [
        Challenge(c.scheme, {name: str(len(name)) for name in c.parameters}) for c in challenges
    ]


@pytest.mark.parametrize(
    ("header", "schemes"),
    [
        ('Basic realm="a", Bearer realm="b"', ["basic", "bearer"]),
        ('Negotiate, Basic realm="a"', ["negotiate", "basic"]),
        ('Negotiate dG9rZW4=, Basic realm="a"', ["negotiate", "basic"]),
        ('Negotiate dG9rZW4, Basic realm="a"', ["negotiate", "basic"]),
        ("NTLM", ["ntlm"]),
        ("Negotiate dG9rZW4==", ["negotiate"]),
        (' , ,Basic realm="a" ,, Bearer realm="b",', ["basic", "bearer"]),
        ('Basic\trealm = "a" , Bearer realm ="b"', ["basic", "bearer"]),
        ('Basic realm="Bearer realm=\\"x\\", Digest"', ["basic"]),
    ],
)
def test_challenges_are_told_apart(header: str, schemes: list[str]):
    assert [challenge.scheme for challenge in parse_challenges(header)] == schemes


@pytest.mark.parametrize(
    "header",
    [
        'Bearer realm="r", service="s"',
        "Bearer realm=r, service=s",
        'Bearer realm="r" service="s"',
        'Bearer , realm="r",, service="s" ,',
        'Bearer realm="r", service="s", realm="second"',
        'bearer REALM="\\r", Service=s',
    ],
)
def test_sloppy_parameters_are_read_all_the_same(header: str):
    assert parse_challenges(header) == [Challenge("bearer", {"realm": "r", "service": "s"})]


@pytest.mark.parametrize("header", ["", " ", ",,", "=", '"', '="a"', "\u00e4 b=c", "a=b", "\0"])
def test_garbage_is_no_challenge(header: str):
    assert parse_challenges(header) == []


def test_an_unfinished_string_ends_the_list_without_its_parameter():
    header = 'Basic realm="a", Bearer service="s", realm="https://auth, Digest realm=x'
    assert parse_challenges(header) == [
        Challenge("basic", {"realm": "a"}),
        Challenge("bearer", {"service": "s"}),
    ]


@given(st.text() | st.text('ab=", \\\t', max_size=60))
def test_any_header_is_read_without_an_exception(header: str):
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower() != ""
        assert all(name == name.lower() != "" for name in challenge.parameters)


@pytest.mark.parametrize(
    "piece",
    ["a", " ", ",", "=", "a ", "a=", 'a="', '"', '\\"', 'a ="\\" ', "a=b ", "a,", '"\\', "a\t="],
)
@pytest.mark.parametrize("start", ["", "Bearer ", 'Bearer realm="'])
def test_a_hostile_header_costs_little(start: str, piece: str):
    began = time.process_time()
    parse_challenges(start + piece * 20_000)
    assert time.process_time() - began < 0.5


def test_of_very_many_challenges_and_parameters_the_first_are_read():
    parameters = ",".join(f"name{number}=value" for number in range(100_000))
    (challenge,) = parse_challenges(f"Bearer {parameters}")[:1]
    assert len(challenge.parameters) == 32
    assert challenge.parameters["name0"] == "value"
    assert len(parse_challenges("Basic, " * 100_000)) == 16
