"""Sizes and times with units, such as ``50GiB`` and ``12h``."""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer

_BINARY: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
#: Units of earlier releases, with the units that replace them.
_OLD: Final = {"kB": "KiB", "KB": "KiB", "MB": "MiB", "GB": "GiB", "TB": "TiB"}
_DECIMAL: Final = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES: Final = _BINARY | _DECIMAL | {"": 1, "B": 1}
_TIMES: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z%]*)\s*", re.ASCII)
_PERCENT: Final = 100.0


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, or a share of the disk (0 to 1); ``text`` is the size as written."""

    text: str
    bytes: int = 0
    share: float | None = None

    @property
    def modern(self) -> str:
        """The size as written, or about the same in KiB, MiB, ... if written in an old unit."""
        matched = _NUMBER.fullmatch(self.text)
        unit = _OLD.get(matched[2]) if matched else None
        return self.text if unit is None else f"{self.bytes / _BINARY[unit]:.4g}{unit}"

    def of(self, disk_bytes: int) -> int:
        """Return the size in bytes on a disk of ``disk_bytes``."""
        return self.bytes if self.share is None else int(self.share * disk_bytes)

    @classmethod
    def parse(cls, text: object) -> "Size":
        """Parse ``512MiB``, ``50GiB``, ``80%``.

        Raises:
            ValueError: the text is not a size.
        """
        if isinstance(text, Size):
            return text
        matched = _NUMBER.fullmatch(str(text)) if isinstance(text, str | int) else None
        number, unit = (float(matched[1]), matched[2]) if matched else (0.0, "?")
        if unit == "%" and number <= _PERCENT:
            return cls(str(text), share=number / _PERCENT)
        if isinstance(text, bool) or unit not in _SIZES:
            raise ValueError("a size such as 512MiB, 50GiB or 80%")
        return cls(str(text), bytes=int(number * _SIZES[unit]))


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds; ``text`` is the time as written."""

    text: str
    seconds: float

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Parse ``250ms``, ``30s``, ``5m``, ``12h``, ``30d``.

        Raises:
            ValueError: the text is not a time.
        """
        if isinstance(text, Duration):
            return text
        matched = _NUMBER.fullmatch(text) if isinstance(text, str) else None
        if matched is None or (matched[2] not in _TIMES and float(matched[1]) != 0):
            raise ValueError("a time such as 30s, 5m, 12h or 30d")
        return cls(str(text), float(matched[1]) * _TIMES.get(matched[2], 1.0))


_as_text = PlainSerializer(lambda quantity: quantity.text, return_type=str)
SizeField = Annotated[Size, BeforeValidator(Size.parse), _as_text]
DurationField = Annotated[Duration, BeforeValidator(Duration.parse), _as_text]
