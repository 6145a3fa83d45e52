"""Visitors: told apart without a word of what they sent."""

import traceback

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.reference import Repository
from mirror.upstream.login import NOBODY, Principal, Principals
from mirror.upstream.routing import Target
from tests.fakes.office import basic

SECRET = "correct-horse"
FIELD = basic("me", SECRET)
principals = Principals(b"a key of this process")


@given(st.text(), st.text())
def test_they_are_the_same_if_they_sent_the_same(one: str, other: str):
    first, second = principals.principal(one), principals.principal(other)
    assert (first == second) is (one == other)
    assert (hash(first) == hash(second)) is (one == other)
    assert NOBODY not in {first, second}


def test_nothing_that_is_written_down_has_the_secret():
    principal = principals.principal(FIELD)
    target = Target("docker.io", Repository("team/app"), principal)
    error = ValueError(principal, target)
    told = f"{principal} {principal!r} {target} {target!r} {principal.credentials()!r} {error!r}"
    told += "".join(traceback.format_exception(error))
    assert SECRET not in told
    assert FIELD.removeprefix("Basic ") not in told


def test_another_process_knows_it_by_another_name():
    assert (
        Principals(b"another key").principal(FIELD).identity != principals.principal(FIELD).identity
    )


def test_a_pair_is_read_and_a_token_is_none():
    credentials = principals.principal(FIELD).credentials()
    assert credentials is not None
    assert credentials.basic() == FIELD
    assert principals.principal("Bearer abc").credentials() is None
    assert Principal("nobody").credentials() is None


def test_names_of_what_is_remembered_differ_by_visitor():
    one, other = principals.principal(FIELD), principals.principal("Bearer abc")
    names = {str(Target("docker.io", Repository("team/app"), who)) for who in (None, one, other)}
    assert len(names) == 3
