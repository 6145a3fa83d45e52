"""Globs of names, the same for images, repositories and hosts; full names of images.

``*`` matches any text without a slash, ``?`` one character other than a slash, and ``**``, alone
between slashes, any number of parts (at the end at least one).

Must not know the cached images or the configured registries: the caller passes the rules of the
registries (``Naming``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Final, Self

from mirror.oci.reference import split_registry

_WILD: Final = frozenset("*?")
_ANY: Final = "**"
_REMEMBERED: Final = 1024


class InvalidGlob(ValueError):  # noqa: N818  # reads as the other names' mistakes
    """A text is not a glob; the message says what is allowed."""


def is_glob(text: str) -> bool:
    """Whether a text contains ``*`` or ``?``."""
    return not _WILD.isdisjoint(text)


@lru_cache(_REMEMBERED)
def compile_glob(glob: str) -> re.Pattern[str]:
    """Return the expression that fully matches the names that a glob means.

    The parts before the next ``**`` are matched once, at the first position: later positions cannot
    help, and trying them would cost exponentially many steps.

    Raises:
        InvalidGlob: ``**`` stands beside other text.
    """
    runs: list[list[str]] = [[]]  # the parts before, between and after each ``**``
    for part in glob.split("/"):
        if part == _ANY:
            runs.append([])
        else:
            runs[-1].append(_part(part))
    first, *others = runs
    if not others:
        return re.compile("/".join(first), re.ASCII)
    *middle, last = others
    front = "".join(f"{part}/" for part in first)
    found = "".join(f"(?>(?:[^/]+/)*?{'/'.join(run)}/)" for run in middle if run)
    end = f"(?:[^/]+/)*{'/'.join(last)}" if last else "[^/]+(?:/[^/]+)*"
    return re.compile(front + found + end, re.ASCII)


def _part(glob: str) -> str:
    """Return the expression for one part; what is between two stars is matched once, too."""
    if _ANY in glob:
        raise InvalidGlob("** by itself between slashes, as in mcr.microsoft.com/dotnet/**")
    first, *pieces = ("[^/]".join(map(re.escape, piece.split("?"))) for piece in glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + f"[^/]*{last}"


# For one release: in `allow` and `deny` of an upstream, `*` and `?` matched slashes, too.


def is_old(glob: str) -> bool:
    """Whether a glob of repositories was written for the dialect of earlier releases."""
    beside = any(_ANY in part and part != _ANY for part in glob.split("/"))
    return "[" in glob or beside or (is_glob(glob) and _ANY not in glob)


@lru_cache(_REMEMBERED)
def compile_repositories(glob: str) -> re.Pattern[str]:
    """As :func:`compile_glob`; an old glob keeps its meaning."""
    return re.compile(translate(glob)) if is_old(glob) else compile_glob(glob)


_ALLOWED: Final = re.compile(r"[A-Za-z0-9._:/@*?-]+", re.ASCII)
_TAG: Final = re.compile(r"(?!.*\*\*)[A-Za-z0-9._*?-]{1,128}", re.ASCII)
_DIGEST: Final = re.compile(r"\*|(?:sha256|sha512):[0-9a-f*?]+", re.ASCII)
_REGISTRY: Final = re.compile(r"[a-z0-9.*?-]+(?::[0-9*?]+)?", re.ASCII)
_REPOSITORY: Final = re.compile(r"[a-z0-9._*?-]+(?:/[a-z0-9._*?-]+)*", re.ASCII)


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
        return f"{self.registry}/{self.repository}"

    @property
    def by_digest(self) -> bool:
        return ":" in self.reference


@dataclass(frozen=True, slots=True)
class Naming:
    """The rules to complete a short name.

    ``default`` is the registry of a name without one, ``aliases`` maps other names of registries;
    in the registries of ``library`` a one-word name means ``library/<word>``.
    """

    default: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    library: frozenset[str] = frozenset()

    def spelt_out(self, name: str) -> tuple[str, str]:
        """Return the registry and the repository of a name; both may be globs."""
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
    """A glob of images: ``[registry/]repository[:tag|@digest]``, read like a name in Docker.

    It matches digests only if it has an ``@`` (``@*`` matches all of them).
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
        """Parse a glob; ``tag`` is used if the glob has neither tag nor digest.

        Raises:
            InvalidGlob: the text is not a glob.
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
            compile_glob(registry),
            compile_glob(f"{registry}/{repository}"),
            compile_glob(reference),
        )

    def matches(self, image: FullName) -> bool:
        return (
            self.by_digest == image.by_digest
            and self._references.fullmatch(image.reference) is not None
            and self.is_in(image)
        )

    def is_in(self, image: FullName) -> bool:
        """Whether the glob matches the repository of an image."""
        return self._places.fullmatch(image.place) is not None

    def may_mean(self, registry: str) -> bool:
        """Whether the glob can match images of a registry."""
        return self._registries.fullmatch(registry) is not None

    @property
    def exact(self) -> FullName | None:
        """The only image that the glob matches, None if it can match several."""
        if is_glob(self.registry + self.repository + self.reference):
            return None
        return FullName(self.registry, self.repository, self.reference)


def _without_tag(name: str, tag: str) -> tuple[str, str]:
    """Split the tag from a name; a colon before a slash belongs to a port."""
    head, colon, last = name.rpartition(":")
    return (head, last) if colon and "/" not in last else (name, tag)
