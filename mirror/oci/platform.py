"""Platforms, and the selection of images by platform from an index (image-index.md).

Knows the different names of a platform, and which variants run on which.  Must not know the
platform of this process.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from mirror.oci.manifest import IndexEntry

_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm",
    "armv7l": "arm",
    "armv7": "arm",
    "armel": "arm",
    "armv6l": "arm",
    "armv6": "arm",
    "loongarch64": "loong64",
}
_OLD_ARM: Final = frozenset({"armel", "armv6l", "armv6"})
_KNOWN: Final = frozenset(_ARCHITECTURES.values()) | {
    "ppc64le", "s390x", "riscv64", "mips64le", "loong64", "wasm",
}  # fmt: skip
#: The default variants.
_USUAL: Final = {"arm": "v7", "arm64": "v8", "amd64": "v1"}

#: The operating system of what is for no platform.
NOBODY: Final = frozenset({"", "unknown"})  # the platform of attestations in an index


class InvalidPlatform(ValueError):  # noqa: N818  # says what it is
    """A text is not a platform."""


class NoSuchPlatform(ValueError):  # noqa: N818  # the same
    """An index has no image for a platform."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and its variant, each by its usual name."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``os/arch[/variant]``, or an architecture alone for Linux.

        Raises:
            InvalidPlatform: the text is not a platform.
        """
        parts = text.split("/")
        if len(parts) == 1 and _ARCHITECTURES.get(text.lower(), text.lower()) in _KNOWN:
            parts = ["linux", text]
        if len(parts) not in {2, 3} or not all(map(_PART.fullmatch, parts)):
            raise InvalidPlatform(
                f"{text[:80]!r} is not a platform: os/arch or os/arch/variant, such as linux/arm64"
            )
        return cls.of(*parts)

    @classmethod
    def of(cls, system: str, architecture: str, variant: str = "") -> Self:
        """Return a platform by any of its names; the default variant is left out."""
        system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
        if architecture in _OLD_ARM and not variant:
            variant = "v6"
        architecture = _ARCHITECTURES.get(architecture, architecture)
        variant = f"v{variant}" if variant.isdecimal() else variant
        if variant == _USUAL.get(architecture):
            variant = ""
        return cls({"macos": "darwin"}.get(system, system), architecture, variant)

    def distance(self, built_for: "Platform") -> int | None:
        """Return how many versions older the variant of an image is; None if it does not run here.

        An older variant runs on a newer machine, but not the reverse.
        """
        if (self.os, self.architecture) != (built_for.os, built_for.architecture):
            return None
        here, there = _generation(self), _generation(built_for)
        if here is None or there is None:
            return 0 if self.variant == built_for.variant else None
        return here - there if there <= here else None


def choose(entries: Sequence[IndexEntry], wanted: Iterable[Platform]) -> list[IndexEntry]:
    """Return the entries of an index for the wanted platforms, each once, in the index's order.

    If several entries fit equally well (Windows has one per build), all of them are returned.

    Raises:
        NoSuchPlatform: the index has no image for one of the platforms.
    """
    chosen: set[int] = set()
    for platform in wanted:
        near = {
            number: distance
            for number, entry in enumerate(entries)
            if (distance := platform.distance(_built_for(entry))) is not None
        }
        if not near:
            raise NoSuchPlatform(f"there is none for {platform}, {_those(entries)}")
        chosen |= {number for number, distance in near.items() if distance == min(near.values())}
    return [entries[number] for number in sorted(chosen)]


def _built_for(entry: IndexEntry) -> Platform:
    return Platform.of(*entry.platform)


def _those(entries: Iterable[IndexEntry]) -> str:
    names = {str(_built_for(entry)) for entry in entries if entry.platform[0] not in NOBODY}
    return f"only for {', '.join(sorted(names))}" if names else "nor for any other"


def _generation(platform: Platform) -> int | None:
    variant = platform.variant or _USUAL.get(platform.architecture, "v0")
    matched = re.fullmatch(r"v([0-9]{1,3})", variant)
    return int(matched[1]) if matched else None
