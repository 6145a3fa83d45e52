"""Platforms by all their names, and the choice from an index."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.manifest import index_entries
from mirror.oci.platform import InvalidPlatform, NoSuchPlatform, Platform, choose

WORD = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)


def index(*platforms: str) -> bytes:
    """An index with an entry for each; its digest is its number."""
    keys = ("os", "architecture", "variant")
    manifests = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{number:064x}",
            "size": number,
            "platform": dict(zip(keys, platform.split("/"), strict=False)),
        }
        for number, platform in enumerate(platforms)
    ]
    return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()


def chosen(wanted: list[str], *platforms: str) -> list[str]:
    entries = index_entries(index(*platforms))
    found = choose(entries, map(Platform.parse, wanted))
    return [platforms[entry.descriptor.size] for entry in found]


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/armv7l", "linux/arm"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/v7", "linux/arm"),
        ("arm64", "linux/arm64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_a_platform_has_one_name_whatever_it_is_called(text, usual):
    assert str(Platform.parse(text)) == usual


@pytest.mark.parametrize("text", ["", "/", "linux", "linux/", "a/b/c/d", "linux/a b", "/amd64"])
def test_what_is_no_platform_is_refused(text):
    with pytest.raises(InvalidPlatform, match="such as linux/arm64"):
        Platform.parse(text)


@given(WORD, WORD, WORD | st.just(""))
def test_what_is_printed_is_read_back(system, architecture, variant):
    platform = Platform.of(system, architecture, variant)
    assert Platform.parse(str(platform)) == platform


USUAL = ("linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "unknown/unknown")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["linux/amd64"], ["linux/amd64"]),
        (["linux/amd64/v3"], ["linux/amd64"]),
        (["linux/arm64"], ["linux/arm64/v8"]),
        (["linux/arm"], ["linux/arm/v7"]),
        (["linux/arm/v8"], ["linux/arm/v7"]),
        (["linux/arm/v6"], ["linux/arm/v6"]),
        (["linux/arm64", "linux/amd64", "amd64"], ["linux/amd64", "linux/arm64/v8"]),
    ],
)
def test_the_nearest_that_runs_there_is_chosen(wanted, found):
    assert chosen(wanted, *USUAL) == found


def test_a_newer_variant_is_not_chosen():
    with pytest.raises(NoSuchPlatform, match="none for linux/arm/v5, only for linux/amd64, "):
        chosen(["linux/arm/v5"], *USUAL)


def test_an_index_that_says_nothing_of_platforms_has_none():
    with pytest.raises(NoSuchPlatform, match="nor for any other"):
        chosen(["linux/amd64"], "unknown/unknown", "/")


def test_every_build_of_windows_is_chosen():
    assert chosen(["windows/amd64"], "windows/amd64", "windows/amd64", "linux/amd64") == [
        "windows/amd64",
        "windows/amd64",
    ]


@given(st.lists(st.sampled_from([*USUAL, "linux/amd64/v2"]), max_size=6), st.sampled_from(USUAL))
def test_what_is_chosen_runs_there_and_nothing_nearer_is_left(platforms, wanted):
    here = Platform.parse(wanted)
    far = [here.distance(Platform.parse(name)) for name in platforms]
    able = [distance for distance in far if distance is not None]
    if not able:
        with pytest.raises(NoSuchPlatform):
            chosen([wanted], *platforms)
        return
    found = chosen([wanted], *platforms)
    assert {here.distance(Platform.parse(name)) for name in found} == {min(able)}
    assert len(found) == far.count(min(able))
