"""Sizes and times as people write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.fields import Duration, Size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("512MiB", 512 << 20),
        ("50GiB", 50 << 30),
        ("1.5KiB", 1536),
        ("5GB", 5_000_000_000),
        ("5 GB", 5_000_000_000),
    ],
)
def test_a_size_is_a_number_of_bytes(text: str, count: int) -> None:
    assert Size.parse(text).of(disk_bytes=1) == count


def test_a_size_may_be_a_plain_number() -> None:
    assert Size.parse(4096).of(disk_bytes=1) == 4096


@pytest.mark.parametrize(("text", "count"), [("80%", 800), ("0%", 0), ("100%", 1000), ("2.5%", 25)])
def test_a_share_is_a_share_of_the_disk(text: str, count: int) -> None:
    assert Size.parse(text).of(disk_bytes=1000) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e3", "50 apples", "101%", "50gib", "1GiB2", "٣GiB", None, True, 1.5]
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="a size such as 512MiB, 50GiB or 80%"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000), ("0", 0)],
)
def test_a_time_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 weeks", "5M", "%", 30, None, True])
def test_what_is_no_time_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="a time such as 30s, 5m, 12h or 30d"):
        Duration.parse(text)


@given(st.integers(0, 10**6), st.sampled_from(["KiB", "MiB", "GiB", "TiB", "B", "kB", "MB", "GB"]))
def test_every_size_is_read_the_same_from_its_own_text(number: int, unit: str) -> None:
    size = Size.parse(f"{number}{unit}")
    assert Size.parse(size.text) == size


@given(st.text() | st.from_regex(r"[0-9.]{1,20} ?[A-Za-z%]{0,3}", fullmatch=True))
def test_any_text_is_a_quantity_that_is_not_negative_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert Size.parse(text).of(disk_bytes=1) >= 0
    with suppress(ValueError):
        assert Duration.parse(text).seconds >= 0
