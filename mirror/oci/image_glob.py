"""Images by the full names that people give them, and globs of such names.

Knows how a name is written.  Must not know what is cached or which registries there are: whoever
reads a glob brings the habits of the registries along (``Naming``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from mirror.oci.reference import split_registry

_ALLOWED: Final = re.compile(r"[A-Za-z0-9._:/@*?-]+", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9._*?-]{1,128}", re.ASCII)
_DIGEST: Final = re.compile(r"\*|(?:sha256|sha512):[0-9a-f*?]+", re.ASCII)
_REGISTRY: Final = re.compile(r"[a-z0-9.*?-]+(?::[0-9*?]+)?", re.ASCII)
_REPOSITORY: Final = re.compile(r"[a-z0-9._*?-]+(?:/[a-z0-9._*?-]+)*", re.ASCII)
_WILD: Final = frozenset("*?")
_ANY: Final = "**"


class InvalidGlob(ValueError):  # noqa: N818  # reads as the other names' mistakes
    """A text that names no image, nor any number of them; says what is allowed."""


@dataclass(frozen=True, slots=True, order=True)
class FullName:
    """One image: its registry, its repository there, and a tag or digest."""

    registry: str
    repository: str
    reference: str

    def __str__(self) -> str:
        return f"{self.place}{'@' if self.by_digest else ':'}{self.reference}"

    @property
    def place(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def by_digest(self) -> bool:
        """Whether it is a digest that names it."""
        return ":" in self.reference


@dataclass(frozen=True, slots=True)
class Naming:
    """What a name means that leaves something out.

    ``default`` is the registry of a name without one, ``aliases`` are other names of registries;
    in those of ``library`` a one-word name means ``library/<word>``.
    """

    default: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    library: frozenset[str] = frozenset()

    def spelt_out(self, name: str) -> tuple[str, str]:
        """Registry and repository of a name, either of which may be a glob."""
        first, _, rest = name.partition("/")
        if name == _ANY or (first == _ANY and rest):
            return "*", name
        if first == "*" and rest:
            return "*", rest
        registry, repository = split_registry(name)
        registry = (registry or self.default).lower()
        registry = self.aliases.get(registry, registry)
        if registry in self.library and "/" not in repository and repository != _ANY:
            repository = f"library/{repository}"
        return registry, repository


@dataclass(frozen=True, slots=True)
class ImageGlob:
    """Any number of images: ``[registry/]repository[:tag|@digest]``, as Docker reads names.

    ``*`` stands for anything within a part between slashes, ``?`` for one character of it, and
    ``**``, by itself between slashes, for one part or more (in front also for none).  A digest is
    meant only where one is written (``@*`` is all of them).
    """

    text: str
    registry: str
    repository: str
    reference: str
    by_digest: bool
    _registries: re.Pattern[str]
    _places: re.Pattern[str]
    _references: re.Pattern[str]

    @classmethod
    def parse(cls, text: str, naming: Naming, tag: str = "*") -> Self:
        """Read a glob; without tag or digest ``tag`` is meant.

        Raises:
            InvalidGlob: it is none.
        """
        if not _ALLOWED.fullmatch(text):
            raise InvalidGlob("names and globs such as docker.io/library/alpine:* or ghcr.io/**")
        name, at, digest = text.partition("@")
        name, tag = _without_tag(name, tag)
        if at and not _DIGEST.fullmatch(digest):
            raise InvalidGlob("after @ a digest, sha256: and lower-case hex digits, or *")
        if not _TAG.fullmatch(tag):
            raise InvalidGlob("after : a tag or its glob, such as 3.* or *")
        registry, repository = naming.spelt_out(name)
        if not _REGISTRY.fullmatch(registry) or not _REPOSITORY.fullmatch(repository):
            raise InvalidGlob("a name in lower case, such as docker.io/library/alpine")
        reference = digest if at else tag
        return cls(
            text,
            registry,
            repository,
            reference,
            bool(at),
            _compiled(_part(registry)),
            _compiled(f"{_part(registry)}/{_expression(repository)}"),
            _compiled(_part(reference)),
        )

    def matches(self, image: FullName) -> bool:
        """Whether it means an image."""
        return (
            self.by_digest == image.by_digest
            and self._references.fullmatch(image.reference) is not None
            and self.is_in(image)
        )

    def is_in(self, image: FullName) -> bool:
        """Whether it means images of the same repository."""
        return self._places.fullmatch(image.place) is not None

    def may_mean(self, registry: str) -> bool:
        """Whether it means images of a registry."""
        return self._registries.fullmatch(registry) is not None

    @property
    def exact(self) -> FullName | None:
        """The one image that it means, None where it may be several."""
        if is_glob(self.registry + self.repository + self.reference):
            return None
        return FullName(self.registry, self.repository, self.reference)


def is_glob(text: str) -> bool:
    """Whether a text has what stands for anything."""
    return not _WILD.isdisjoint(text)


def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.ASCII)


def _without_tag(name: str, tag: str) -> tuple[str, str]:
    """Take the tag off a name; a colon before a slash is a port's."""
    head, colon, last = name.rpartition(":")
    return (head, last) if colon and "/" not in last else (name, tag)


def _expression(glob: str) -> str:
    """A regular expression for parts between slashes.

    As in a part, what stands before the next ``**`` is matched once, where it is found first.
    """
    first, *runs = _runs(glob.split("/"))
    if not runs:
        return "/".join(first)
    *middle, last = runs
    front = "".join(f"{part}/" for part in first)
    found = "".join(f"(?>(?:[^/]+/)*?{'/'.join(run)}/)" for run in middle if run)
    end = f"(?:[^/]+/)*{'/'.join(last)}" if last else "[^/]+(?:/[^/]+)*"
    return front + found + end


def _runs(parts: list[str]) -> list[list[str]]:
    """The expressions of parts, before, between and behind each ``**``."""
    runs: list[list[str]] = [[]]
    for part in parts:
        if part == _ANY:
            runs.append([])
        else:
            runs[-1].append(_part(part))
    return runs


def _part(glob: str) -> str:
    """A regular expression for one part.

    A piece between two stars is matched once, where it is found first: to look for it further on
    cannot help, and would cost exponentially many steps for many stars.
    """
    if _ANY in glob:
        raise InvalidGlob("** by itself between slashes, as in mcr.microsoft.com/dotnet/**")
    first, *pieces = ("[^/]".join(map(re.escape, piece.split("?"))) for piece in glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + f"[^/]*{last}"
