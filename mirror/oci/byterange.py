"""Byte ranges: the fields Range and Content-Range (RFC 9110, 14).

Knows the two header fields.  Must not know the content.
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Final

_DIGITS: Final = "[0-9]{1,20}"  # enough for 2**64 - 1, with which some clients mean "to the end"
_SPEC: Final = re.compile(rf"bytes\s*=\s*({_DIGITS})?-({_DIGITS})?\s*", re.ASCII | re.IGNORECASE)
_MAX_RANGES: Final = 64  # each costs a read and a part header
_CONTENT_RANGE: Final = re.compile(
    rf"bytes ({_DIGITS})-({_DIGITS})/({_DIGITS}|\*)", re.ASCII | re.IGNORECASE
)


class RangeNotSatisfiable(ValueError):  # noqa: N818  # the phrase of status 416
    """A range that names no byte of the content."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to ``stop`` (exclusive).

    ``open_ended``: the client named no end; it may close the connection when it has enough.
    """

    start: int
    stop: int
    open_ended: bool = False

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """The Content-Range field for content of ``size`` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a Range field for content of ``size`` bytes; None means the whole content.

    A field with another unit or with several ranges (see :func:`parse_ranges`) is ignored, as
    RFC 9110, 14.2 allows; a range that reaches beyond the end is cut there.

    Raises:
        RangeNotSatisfiable: the range starts beyond the end, or the field is malformed.
    """
    if header is None or "," in header or not _is_in_bytes(header):
        return None
    matched = _SPEC.fullmatch(header.strip())
    first, last = matched.groups() if matched else (None, None)
    if first is None and last is None:
        raise RangeNotSatisfiable("the Range field is malformed: bytes=first-last, first-, -length")
    if first is None:
        start, stop = max(0, size - int(last or 0)), size
    else:
        start, stop = int(first), size if last is None else min(int(last) + 1, size)
    if first is not None and start == size == 0:
        return None  # like Go's ServeContent: containerd's parallel fetch always asks for bytes=0-
    if start >= stop:
        raise RangeNotSatisfiable(f"the range contains none of the {size} bytes")
    return ByteRange(start, stop, open_ended=first is not None and last is None)


def parse_ranges(header: str | None, size: int) -> tuple[ByteRange, ...]:
    """Parse a Range field for content of ``size`` bytes; no ranges mean the whole content.

    The order is that of the field.  Ranges that contain no byte are left out.  The field is
    ignored if it has more than 64 ranges or their sum exceeds ``size`` (RFC 9110, 14.2).

    Raises:
        RangeNotSatisfiable: every range starts beyond the end or is malformed.
    """
    if header is None or "," not in header or not _is_in_bytes(header):
        one = parse_range(header, size)
        return () if one is None else (one,)
    if header.count(",") > _MAX_RANGES:
        return ()
    items = [item for item in header.partition("=")[2].split(",") if item.strip()]
    if len(items) > _MAX_RANGES:
        return ()
    found: list[ByteRange] = []
    for item in items:
        with contextlib.suppress(RangeNotSatisfiable):
            one = parse_range(f"bytes={item.strip()}", size)
            if one is not None:
                found.append(one)
    if not found:
        raise RangeNotSatisfiable(f"the ranges contain none of the {size} bytes")
    return () if sum(one.length for one in found) > size else tuple(found)


def parse_content_range(header: str) -> tuple[int, int, int | None]:
    """Parse Content-Range: start, stop (exclusive), size (None if unknown).

    Raises:
        ValueError: the field is malformed or contradicts itself.
    """
    matched = _CONTENT_RANGE.fullmatch(header.strip())
    if matched is None:
        raise ValueError("no Content-Range in bytes")
    start, stop = int(matched[1]), int(matched[2]) + 1
    size = None if matched[3] == "*" else int(matched[3])
    if start >= stop or (size is not None and stop > size):
        raise ValueError("a Content-Range that ends before it begins, or beyond the content")
    return start, stop, size


def _is_in_bytes(header: str) -> bool:
    return header.partition("=")[0].strip().lower() == "bytes"
