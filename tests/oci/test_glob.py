"""The dialect of globs, and that of earlier releases for repositories."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.glob import InvalidGlob, compile_glob, compile_repositories, is_old


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
