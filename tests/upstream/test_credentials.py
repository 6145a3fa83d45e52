"""Visitors: told apart without a word of what they sent."""

import traceback

from hypothesis import given
from hypothesis import strategies as st

from mirror.upstream.credentials import NOBODY, Visitor, Visitors
from mirror.upstream.routing import Target
from tests.fakes.office import basic

SECRET = "correct-horse"
FIELD = basic("me", SECRET)
visitors = Visitors(b"a key of this process")


@given(st.text(), st.text())
def test_they_are_the_same_if_they_sent_the_same(one: str, other: str):
    first, second = visitors.visitor(one), visitors.visitor(other)
    assert (first == second) is (one == other)
    assert (hash(first) == hash(second)) is (one == other)
    assert NOBODY not in {first, second}


def test_nothing_that_is_written_down_has_the_secret():
    visitor = visitors.visitor(FIELD)
    target = Target("docker.io", "team/app", visitor)
    error = ValueError(visitor, target)
    told = f"{visitor} {visitor!r} {target} {target!r} {visitor.credentials()!r} {error!r}"
    told += "".join(traceback.format_exception(error))
    assert SECRET not in told
    assert FIELD.removeprefix("Basic ") not in told


def test_another_process_knows_it_by_another_name():
    assert Visitors(b"another key").visitor(FIELD).identity != visitors.visitor(FIELD).identity


def test_a_pair_is_read_and_a_token_is_none():
    credentials = visitors.visitor(FIELD).credentials()
    assert credentials is not None
    assert credentials.basic() == FIELD
    assert visitors.visitor("Bearer abc").credentials() is None
    assert Visitor("nobody").credentials() is None


def test_names_of_what_is_remembered_differ_by_visitor():
    one, other = visitors.visitor(FIELD), visitors.visitor("Bearer abc")
    names = {str(Target("docker.io", "team/app", who)) for who in (None, one, other)}
    assert len(names) == 3
