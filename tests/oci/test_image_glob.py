"""Globs of names, and full names of images."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.image_glob import (
    FullName,
    ImageGlob,
    InvalidGlob,
    Naming,
    compile_glob,
    compile_repositories,
    is_old,
)


@pytest.mark.parametrize(
    ("glob", "means", "not_"),
    [
        ("team/app", ["team/app"], ["team/ap", "team/app/x", "xteam/app"]),
        ("team/*", ["team/app"], ["team", "team/app/base"]),
        ("team/**", ["team/app", "team/app/base"], ["team", "teams/app"]),
        ("**", ["app", "team/app"], [""]),
        ("**/app", ["app", "team/app", "team/x/app"], ["apps", "team/app/x"]),
        ("team/**/app", ["team/app", "team/x/y/app"], ["team/xapp"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com"]),
        ("a[b]c", ["a[b]c"], ["abc"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_a_glob_means_these_and_not_those(glob, means, not_):
    expression = compile_glob(glob)
    assert [name for name in means + not_ if expression.fullmatch(name)] == means


@pytest.mark.parametrize("glob", ["a**", "**b/c", "a/***", "a/**b"])
def test_two_stars_stand_alone(glob):
    with pytest.raises(InvalidGlob, match=r"\*\* by itself between slashes"):
        compile_glob(glob)


GLOBS = st.text("ab/*?[]-", max_size=12)


@given(GLOBS, st.text("ab/-", max_size=8))
def test_each_glob_of_repositories_is_of_one_dialect(glob, repository):
    found = compile_repositories(glob).fullmatch(repository) is not None
    if is_old(glob):
        assert found == fnmatchcase(repository, glob)
    else:
        assert found == (compile_glob(glob).fullmatch(repository) is not None)


@pytest.mark.parametrize(
    ("glob", "old"),
    [
        ("*", True),
        ("team/*", True),
        ("team/a?p", True),
        ("team/[ab]", True),
        ("team**", True),
        ("**", False),
        ("team/**", False),
        ("team/**/a*", False),
        ("team/app", False),
    ],
)
def test_a_glob_without_two_stars_is_old(glob, old):
    assert is_old(glob) is old


HUB = "docker.io"
NAMING = Naming(HUB, {"index.docker.io": HUB}, frozenset({HUB}))
HEX = "4f" * 32
ALPINE = FullName(HUB, "library/alpine", "3.20")
SDK = FullName("mcr.microsoft.com", "dotnet/sdk", "8.0")
DEEP = FullName("ghcr.io", "org/team/app", "v1")
PINNED = FullName(HUB, "library/alpine", f"sha256:{HEX}")

PART = st.lists(st.text("ab9", min_size=1, max_size=3), min_size=1, max_size=2).map("-".join)
TAG = st.text("abZ9._-", max_size=4).map(lambda text: f"v{text}")
NAMES = st.builds(
    lambda host, parts, reference: FullName(f"{host}.example", "/".join(parts), reference),
    PART,
    st.lists(PART, min_size=1, max_size=4),
    st.one_of(TAG, st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")),
)


def glob(text: str, tag: str = "*") -> ImageGlob:
    return ImageGlob.parse(text, NAMING, tag)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine:3.20", ALPINE),
        ("alpine", ALPINE),
        ("library/alpine:3.*", ALPINE),
        ("docker.io/alpine:3.2?", ALPINE),
        ("index.docker.io/library/alpine:*", ALPINE),
        ("Docker.IO/library/alp*", ALPINE),
        ("docker.io/*", ALPINE),
        ("docker.io/**", ALPINE),
        ("**", ALPINE),
        ("**", DEEP),
        ("**/alpine", ALPINE),
        ("*/library/alpine", ALPINE),
        ("**:3.20", ALPINE),
        ("mcr.microsoft.com/dotnet/**", SDK),
        ("mcr.microsoft.com/dotnet/sdk:8.*", SDK),
        ("*.microsoft.com/dotnet/sdk", SDK),
        ("ghcr.io/org/**", DEEP),
        ("ghcr.io/**/app:v1", DEEP),
        ("ghcr.io/*/*/app", DEEP),
        ("alpine@*", PINNED),
        (f"alpine@sha256:{HEX}", PINNED),
        (f"alpine:3.20@sha256:{HEX}", PINNED),
        ("**@sha256:4f4f*", PINNED),
    ],
)
def test_a_glob_means_what_docker_would_call_so(text, name):
    assert glob(text).matches(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine:3.2", ALPINE),
        ("alpine", PINNED),
        ("alpine@*", ALPINE),
        ("alp?ne:3?20?", ALPINE),
        ("alpin", ALPINE),
        ("docker.io/*", DEEP),
        ("*", SDK),
        ("ghcr.io/*", DEEP),
        ("ghcr.io/*/app", DEEP),
        ("ghcr.io/org/**", FullName("ghcr.io", "org", "v1")),
        ("dockerxio/library/alpine", ALPINE),
        ("localhost/alpine", ALPINE),
        ("registry.example:5000/library/alpine", ALPINE),
    ],
)
def test_a_glob_means_no_more_than_that(text, name):
    assert not glob(text).matches(name)


@pytest.mark.parametrize(
    "text",
    ["", "a b", "alpine:", "alpine@", "alpine@latest", "alpine@sha256:XY", "/alpine", "a//b",
     "ghcr.io/", "dot**net/sdk", "ghcr.io/a**", "***", "alpine:**", "al[p]ine", "alpine:3/*:x:y",
     "https://docker.io/alpine", "alpine\n"],
)  # fmt: skip
def test_what_is_no_glob_is_a_mistake_that_says_what_is_allowed(text):
    with pytest.raises(InvalidGlob, match=r"\w+"):
        glob(text)


def test_without_a_tag_the_one_is_meant_that_the_reader_says():
    latest = glob("alpine", "latest")
    assert latest.exact == FullName(HUB, "library/alpine", "latest")
    assert not latest.matches(ALPINE)
    assert glob("alpine:3.*", "latest").matches(ALPINE)


@given(NAMES)
def test_every_image_is_meant_by_its_own_name_and_by_all(name):
    own = glob(str(name))
    assert own.matches(name)
    assert own.exact == name
    assert glob(f"**{'@*' if name.by_digest else ''}").matches(name)
    assert glob(f"{name.registry}/**{'@*' if name.by_digest else ''}").matches(name)


@given(NAMES, NAMES)
def test_a_name_means_no_other_image(one, other):
    assert glob(str(one)).matches(other) is (one == other)


@given(NAMES, st.data())
def test_a_star_stands_for_any_run_within_a_part_and_for_no_slash(name, data):
    text = str(name)
    first = text.rindex(":") + 1 if name.by_digest else text.index("/") + 1
    start = data.draw(st.integers(first, len(text)))
    end = data.draw(st.integers(start, len(text)))
    cut = text[start:end]
    starred = f"{text[:start]}*{text[end:]}"
    # Neither what says of what kind the name is, nor a star beside nothing.
    if re.search(r"[/:@]", cut):
        return
    assert glob(starred).matches(name)
    assert not glob(starred).matches(FullName(name.registry, f"x/{name.repository}", "y"))


@given(st.text("ab./:@*?-_0", max_size=30))
def test_any_text_is_a_glob_or_a_mistake(text):
    try:
        parsed = glob(text)
    except InvalidGlob:
        return
    parsed.matches(ALPINE)


def fits(pattern: str, text: str) -> bool:
    """Whether a part fits a glob, found by trying every way."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(fits(pattern[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in {"?", text[0]} and fits(pattern[1:], text[1:])


def fit(patterns: list[str], parts: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        least = 1 if len(patterns) == 1 else 0
        return any(fit(patterns[1:], parts[at:]) for at in range(least, len(parts) + 1))
    return bool(parts) and fits(patterns[0], parts[0]) and fit(patterns[1:], parts[1:])


@pytest.mark.long
@given(
    st.lists(st.just("**") | st.from_regex(r"[ab](\*?[ab?])*\*?", fullmatch=True), max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_a_glob_means_what_trying_every_way_finds(patterns: list[str], parts: list[str]):
    image = FullName("x.example", "/".join(parts), "1")
    found = glob("/".join(["x.example", *patterns, "a*"])).matches(image)
    assert found == fit([*patterns, "a*"], parts)
    if patterns:
        ending = glob("/".join(["x.example", *patterns, "**"])).matches(image)
        assert ending == fit([*patterns, "**"], parts)


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("x.example/" + "a*" * 20 + "b", "a" * 250),
        ("x.example/" + "?*" * 20 + "b", "a" * 250),
        ("x.example/" + "**/" * 20 + "b", "/".join("a" * 125)),
        ("x.example/" + "**/a*a/" * 20 + "b", "/".join(["aa"] * 80)),
        ("x.example/" + "a*/" * 20 + "b", "/".join(["a" * 12] * 20)),
    ],
)
def test_no_number_of_stars_makes_a_glob_search_without_end(text: str, repository: str):
    assert not glob(text).matches(FullName("x.example", repository, "1"))
