"""Digests: names that are the hash of their content (OCI image spec, descriptor.md#digests).

Knows the two algorithms that every client supports.  Must not know where the bytes come from.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Protocol, Self

_HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)


class InvalidDigest(ValueError):  # noqa: N818  # reads as the spec's DIGEST_INVALID
    """A text is not a digest."""


class Hasher(Protocol):
    """The interface of hashlib's objects."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The hash of the bytes so far, in lower-case hexadecimal."""

    def copy(self) -> "Hasher":
        """Return another hasher with the same state."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and a hash in lower-case hexadecimal."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``algorithm:hex``.

        Raises:
            InvalidDigest: the text is not a digest of one of the algorithms of the spec.
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
        """Return the digest of ``data`` by ``sha256`` or ``sha512``."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Whether the bytes in ``hasher`` have this digest."""
        return hasher.hexdigest() == self.hex
