"""Digests: names that say what their content must be (OCI image spec, descriptor.md#digests).

Knows the two algorithms every client can check.  Must not know where the bytes come from.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Protocol, Self

_HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)


class InvalidDigest(ValueError):  # noqa: N818  # reads as the spec's DIGEST_INVALID
    """A text that is no digest."""


class Hasher(Protocol):
    """What hashlib's objects are."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The hash of the bytes so far, in lower-case hexadecimal."""

    def copy(self) -> "Hasher":
        """Another hasher that has seen the same bytes."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and a hash in lower-case hexadecimal."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``algorithm:hex``.

        Raises:
            InvalidDigest: it is not a digest by one of the algorithms of the spec.
        """
        algorithm, _, hexadecimal = text.partition(":")
        if algorithm not in _HEX_LENGTHS:
            raise InvalidDigest(f"a digest begins with sha256: or sha512:, not {algorithm[:32]!r}")
        length = _HEX_LENGTHS[algorithm]
        if len(hexadecimal) != length or not _HEX.fullmatch(hexadecimal):
            raise InvalidDigest(f"{algorithm}: is followed by {length} lower-case hex digits")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """The digest of ``data`` by ``sha256`` or ``sha512``."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A hasher of this digest's algorithm that has seen nothing yet."""
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Whether what the hasher has seen is this digest's content."""
        return hasher.hexdigest() == self.hex
