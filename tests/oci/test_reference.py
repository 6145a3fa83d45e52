"""Names of repositories, tags, references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.reference import (
    InvalidName,
    InvalidReference,
    parse_reference,
    parse_repository,
    parse_tag,
    split_registry,
)

WORD = st.text("abcxyz019", min_size=1, max_size=6)
SEPARATOR = st.sampled_from([".", "_", "__", "-", "--", "----"])
COMPONENT = st.builds(
    lambda first, rest: first + "".join(a + b for a, b in rest),
    WORD,
    st.lists(st.tuples(SEPARATOR, WORD), max_size=2),
)
REPOSITORY = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
TAG = st.builds(
    str.__add__,
    st.sampled_from("_aZ0"),
    st.text("aZ09._-", max_size=127),
)


@given(REPOSITORY)
def test_names_made_by_the_grammar_are_accepted_as_they_are(name: str):
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "A",
        "library/Alpine",
        "-a",
        "a-",
        "a..b",
        "a._b",
        "a___b",
        ".",
        "..",
        "a/../b",
        "a b",
        "a\n",
        "a\0",
        "a%2fb",
        "a:b",
        "a@b",
        "\u00e4",
        "\u0430lpine",  # a Cyrillic a
    ],
)
def test_what_is_no_name_of_a_repository_is_refused(name: str):
    with pytest.raises(InvalidName):
        parse_repository(name)


def test_a_name_may_have_255_characters_and_no_more():
    assert parse_repository("a" * 255)
    with pytest.raises(InvalidName, match="255"):
        parse_repository("a" * 256)


@given(st.text(max_size=64))
def test_no_accepted_name_can_climb_out_of_a_directory(text: str):
    try:
        name = parse_repository(text)
    except InvalidName:
        return
    assert all(part.strip(".") for part in name.split("/"))
    assert name.isascii()
    assert name == name.lower()


@given(TAG)
def test_tags_made_by_the_grammar_are_accepted_as_they_are(tag: str):
    assert parse_tag(tag) == tag
    assert parse_reference(tag) == tag


@pytest.mark.parametrize(
    "tag",
    ["", ".", "..", "-a", ".a", "a b", "a/b", "a\n", "\u00fc", "a" * 129, "a%20", "a+b", "a@b"],
)
def test_what_is_no_tag_is_refused(tag: str):
    with pytest.raises(InvalidReference):
        parse_tag(tag)
    with pytest.raises(InvalidReference):
        parse_reference(tag)


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_a_reference_with_a_colon_is_a_digest(data: bytes, algorithm: str):
    digest = Digest.of(data, algorithm)
    assert parse_reference(str(digest)) == digest


@pytest.mark.parametrize("text", ["latest:", ":latest", "md5:00", "sha256:", "sha256:" + "g" * 64])
def test_a_reference_with_a_colon_that_is_no_digest_is_refused(text: str):
    with pytest.raises(InvalidReference):
        parse_reference(text)


@pytest.mark.parametrize(
    ("name", "registry", "rest"),
    [
        ("alpine", None, "alpine"),
        ("library/alpine", None, "library/alpine"),
        ("mcr.microsoft.com/dotnet/sdk", "mcr.microsoft.com", "dotnet/sdk"),
        ("localhost/x", "localhost", "x"),
        ("localhost:5001/x", "localhost:5001", "x"),
        ("registry:5000/a/b", "registry:5000", "a/b"),
        ("localhost", None, "localhost"),
        ("mcr.microsoft.com", None, "mcr.microsoft.com"),
        ("localhosts/x", None, "localhosts/x"),
        ("a/b.c/d", None, "a/b.c/d"),
        ("", None, ""),
    ],
)
def test_the_registry_is_told_from_the_repository_by_docker_s_rule(
    name: str, registry: str | None, rest: str
):
    assert split_registry(name) == (registry, rest)


@given(st.text("a.:/", max_size=12))
def test_splitting_a_name_loses_nothing(name: str):
    registry, rest = split_registry(name)
    assert name == (rest if registry is None else f"{registry}/{rest}")
