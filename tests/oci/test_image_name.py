"""Names of images as people type them, and lists of them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.image_name import joined, parse_image, parse_list
from mirror.oci.reference import InvalidName, InvalidReference
from tests.oci.test_reference import REPOSITORY, TAG

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
REGISTRY = st.sampled_from(["docker.io", "localhost", "localhost:5000", "r.example.com:443"])


@pytest.mark.parametrize(
    ("text", "registry", "repository", "reference"),
    [
        ("alpine", None, "alpine", "latest"),
        ("alpine:3.20", None, "alpine", "3.20"),
        ("org/app", None, "org/app", "latest"),
        ("docker.io/alpine", "docker.io", "alpine", "latest"),
        ("mcr.microsoft.com/dotnet/sdk:8.0", "mcr.microsoft.com", "dotnet/sdk", "8.0"),
        ("localhost/app", "localhost", "app", "latest"),
        ("r.lan:5000/app:1", "r.lan:5000", "app", "1"),
        ("app:5000", None, "app", "5000"),
        (f"alpine@{DIGEST}", None, "alpine", DIGEST),
        (f"r.lan:5000/a/b:1@{DIGEST}", "r.lan:5000", "a/b", DIGEST),
    ],
)
def test_what_is_left_out_is_what_docker_makes_of_it(text, registry, repository, reference):
    image = parse_image(text)
    assert (image.registry, image.repository) == (registry, repository)
    assert str(image.reference) == reference


@given(REGISTRY | st.none(), REPOSITORY, TAG | st.just(Digest.parse(DIGEST)))
def test_a_full_name_is_read_as_it_was_made(registry, repository, reference):
    first = repository.partition("/")[0]
    if registry is None and "/" in repository and ("." in first or first == "localhost"):
        return  # that would be a registry
    image = parse_image("/".join(filter(None, [registry, joined(repository, reference)])))
    assert (image.registry, image.repository) == (registry, repository)
    assert image.reference == reference
    assert parse_image(str(image)) == image


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "/", "Alpine", "alpine:", "alpine@", "alpine:-1", "a b", "a//b", "/a", "a/",
        "docker.io/", "alpine@sha256:00", "alpine:1:2", "../etc", "https://alpine",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_image(text)


def test_a_scheme_is_told_for_what_it_is():
    with pytest.raises(ValueError, match=r"without a scheme: alpine:3"):
        parse_image("docker://alpine:3")


@given(st.text(max_size=200))
def test_any_text_is_a_name_or_a_mistake_and_what_is_a_name_is_read_again(text):
    with contextlib.suppress(InvalidName, InvalidReference):
        image = parse_image(text)
        assert parse_image(str(image)) == image


def test_a_list_has_comments_and_empty_lines_and_says_where_a_mistake_is():
    lines = ["# ours", "", "alpine:3.20  # small\r\n", "  quay.io/org/app\t", "Alpine", "\ufeffa"]
    found = list(parse_list(lines))
    assert [(line.number, str(line.image) if line.image else None) for line in found] == [
        (3, "alpine:3.20"),
        (4, "quay.io/org/app:latest"),
        (5, None),
        (6, "a:latest"),
    ]
    assert "'Alpine' is not the name of a repository" in found[2].mistake


@given(st.lists(st.text(st.characters(exclude_characters="\n\r"), max_size=40), max_size=10))
def test_every_line_that_says_something_is_an_image_or_a_mistake(lines):
    found = list(parse_list(lines))
    assert all((line.image is None) == bool(line.mistake) for line in found)
    numbers = [line.number for line in found]
    assert numbers == sorted(set(numbers))
    silent = set(range(1, len(lines) + 1)) - set(numbers)
    assert all(not lines[number - 1].partition("#")[0].strip("\ufeff \t\f\v") for number in silent)
