"""Numbers and times as people read them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.image_name import familiar_reference, familiar_repository
from mirror.ui import formatting


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (100.4 * 1024**2, "100 MiB"),
        (50 * 1024**3, "50 GiB"),
        (3.2 * 1024**4, "3.2 TiB"),
        (-2048, "\N{MINUS SIGN}2 KiB"),
    ],
)
def test_a_size(count, text):
    assert plain(formatting.size(count)) == text


@given(st.integers(0, 2**62))
def test_a_size_is_short(count):
    assert len(formatting.size(count)) <= len("1,023.9 KiB")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 %"),
        (0.5, "50.0 %"),
        (0.99999, "99.9 %"),
        (1, "100 %"),
        (1e-9, "0.1 %"),
    ],
)
def test_a_share_is_all_or_nothing_only_where_it_is(part, text):
    assert plain(formatting.share(part)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0004, "0 ms"),
        (0.04, "40 ms"),
        (0.0999, "0.1 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (86_399, "23 h 59 min"),
        (258_000, "2 d 23 h"),
    ],
)
def test_a_duration(seconds, text):
    assert plain(formatting.duration(seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "now"),
        (0.9, "now"),
        (12.9, "12 s ago"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (86400, "1 day ago"),
        (200000, "2 days ago"),
    ],
)
def test_an_age(seconds, text):
    assert plain(formatting.age(seconds)) == text


@pytest.mark.parametrize(
    ("registry", "repository", "reference", "typed"),
    [
        ("docker.io", "library/alpine", "3.20", "alpine:3.20"),
        ("docker.io", "grafana/grafana", "latest", "grafana/grafana:latest"),
        ("ghcr.io", "library/tool", "1", "ghcr.io/library/tool:1"),
        ("quay.io", "a/b", "sha256:" + "c" * 64, "quay.io/a/b@sha256:cccccccccccc"),
        ("quay.io", "a/b", "", "quay.io/a/b"),
        ("quay.io", "(private)", "(private)", "quay.io/(private)"),
    ],
)
def test_an_image_is_called_what_one_types_to_pull_it(registry, repository, reference, typed):
    assert familiar_repository(registry, repository) + familiar_reference(reference) == typed


def test_a_time_of_another_day_has_its_date():
    noon = time.mktime((2026, 3, 14, 12, 5, 0, 0, 0, -1))
    assert formatting.clock(noon, noon + 3600) == "12:05"
    assert formatting.clock(noon, noon + 24 * 3600) == "14\N{NO-BREAK SPACE}March, 12:05"
