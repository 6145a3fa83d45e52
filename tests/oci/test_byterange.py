"""Ranges: what clients ask for and upstreams answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.byterange import (
    ByteRange,
    RangeNotSatisfiable,
    parse_content_range,
    parse_range,
    parse_ranges,
)

SIZES = st.integers(min_value=1, max_value=40)
U64_MAX = 2**64 - 1


@given(st.integers(0, 50), st.integers(0, 50), SIZES)
def test_first_and_last_select_what_slicing_selects(first: int, last: int, size: int):
    content = bytes(range(size))
    expected = content[first : last + 1]
    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(f"bytes={first}-{last}", size)
        return
    wanted = parse_range(f"bytes={first}-{last}", size)
    assert wanted is not None
    assert content[wanted.start : wanted.stop] == expected
    assert wanted.length == len(expected)


@given(st.integers(0, 50), SIZES)
def test_an_open_range_runs_to_the_end(first: int, size: int):
    if first < size:
        assert parse_range(f"bytes={first}-", size) == ByteRange(first, size, open_ended=True)
    else:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(f"bytes={first}-", size)


@given(st.integers(0, 50), SIZES)
def test_a_suffix_is_the_last_bytes_or_all_there_are(length: int, size: int):
    if length and size:
        assert parse_range(f"bytes=-{length}", size) == ByteRange(max(0, size - length), size)
    else:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(f"bytes=-{length}", size)


def test_an_empty_blob_is_given_whole_to_who_asks_from_its_start():
    assert parse_range("bytes=0-", 0) is None
    assert parse_range("bytes=0-99", 0) is None
    for header in ("bytes=1-", "bytes=-1", "bytes=-0"):
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, 0)


@pytest.mark.parametrize("last", [2**63 - 1, U64_MAX])
def test_the_largest_integers_of_other_languages_mean_the_end(last: int):
    assert parse_range(f"bytes=2-{last}", 10) == ByteRange(2, 10)
    assert parse_range(f"bytes=-{last}", 10) == ByteRange(0, 10)


@pytest.mark.parametrize("header", ["BYTES=1-2", " bytes=1-2 ", "bytes = 1-2"])
def test_the_unit_is_read_whatever_its_case_and_spacing(header: str):
    assert parse_range(header, 10) == ByteRange(1, 3)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "lines=1-2",
        "bytesize=1-2",
        "=1-2",
        "bytes=0-1,3-4",
        "bytes=0-1, -1",
        "bytes=9-1,a",
    ],
)
def test_what_a_server_may_ignore_means_the_whole(header: str | None):
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    "header",
    [
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=1",
        "bytes=a-b",
        "bytes=1-2-3",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=0x1-2",
        "bytes=1_0-20",
        "bytes=1.0-2",
        "bytes=1 -2",
        "bytes=\u0661-",  # a digit to int(), not to HTTP
        "bytes=3-2",
        "bytes=" + "9" * 5000 + "-",  # more digits than int() takes
    ],
)
def test_a_malformed_range_is_not_satisfiable(header: str):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 10)


@given(st.text("bytes=-0123456789, ", max_size=24) | st.text(), SIZES)
def test_any_header_is_ignored_refused_or_within_the_content(header: str, size: int):
    try:
        wanted = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    assert wanted is None or 0 <= wanted.start < wanted.stop <= size


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=5), SIZES)
def test_several_ranges_select_what_slicing_selects(pairs: list[tuple[int, int]], size: int):
    header = "bytes=" + ", ".join(f"{first}-{last}" for first, last in pairs)
    content = bytes(range(size))
    expected = [content[first : last + 1] for first, last in pairs]
    expected = [part for part in expected if part]
    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            parse_ranges(header, size)
        return
    found = [content[one.start : one.stop] for one in parse_ranges(header, size)]
    assert found == (expected if sum(map(len, expected)) <= size else [])


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("bytes=0-1", [(0, 2)]),
        ("bytes=0-1,", [(0, 2)]),
        ("bytes= 0-1 ,\t-2", [(0, 2), (8, 10)]),
        ("bytes=7-8,0-1", [(7, 9), (0, 2)]),
        ("bytes=0-1,x,99-", [(0, 2)]),
        ("bytes=0-,5-9", []),
        ("lines=0-1,2-3", []),
        ("bytes=" + "0-0,1-1," * 2, [(0, 1), (1, 2)] * 2),
        ("bytes=" + "0-0," * 65, []),
        (None, []),
    ],
)
def test_several_ranges_come_in_the_clients_order(header: str, ranges: list[tuple[int, int]]):
    assert [(one.start, one.stop) for one in parse_ranges(header, 10)] == ranges


@given(st.text("bytes=-0123456789, ", max_size=24) | st.text(), SIZES)
def test_any_header_gives_ranges_within_the_content(header: str, size: int):
    try:
        wanted = parse_ranges(header, size)
    except RangeNotSatisfiable:
        return
    assert all(0 <= one.start < one.stop <= size for one in wanted)


@given(st.integers(0, 2**40), st.integers(1, 2**40), st.integers(0, 2**40))
def test_what_we_say_of_a_range_is_read_back_the_same(start: int, length: int, after: int):
    size = start + length + after
    said = ByteRange(start, start + length).content_range(size)
    assert parse_content_range(said) == (start, start + length, size)


def test_a_content_range_counts_its_last_byte():
    assert ByteRange(0, 1).content_range(10) == "bytes 0-0/10"


def test_a_content_range_may_leave_the_size_open():
    assert parse_content_range("bytes 5-9/*") == (5, 10, None)


def test_the_unit_of_a_content_range_is_read_whatever_its_case():
    assert parse_content_range("Bytes 5-9/10") == (5, 10, 10)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes */10",
        "bytes 0-9",
        "bytes=0-9/10",
        "lines 0-9/10",
        "bytes 9-0/10",
        "bytes 0-10/10",
        "bytes -9/10",
        "bytes 0-/10",
        "bytes 0-9/-10",
        "bytes 0-9/ten",
        "bytes 0-9/10, bytes 0-9/10",
        "bytes 0-" + "9" * 5000 + "/*",
    ],
)
def test_nonsense_from_upstream_is_refused(header: str):
    with pytest.raises(ValueError, match="Content-Range"):
        parse_content_range(header)


@given(st.text("bytes 0123456789-/*", max_size=20) | st.text())
def test_any_content_range_is_refused_or_makes_sense(header: str):
    try:
        start, stop, size = parse_content_range(header)
    except ValueError:
        return
    assert 0 <= start < stop
    assert size is None or stop <= size


@pytest.mark.parametrize(("count", "found"), [(64, 64), (65, 0), (100_000, 0)])
def test_more_than_64_ranges_are_ignored(count: int, found: int):
    header = "bytes=" + ",".join(f"{2 * number}-{2 * number}" for number in range(count))
    assert len(parse_ranges(header, 10**6)) == found
