"""Image names as people type them: ``alpine``, ``ghcr.io/org/app:1``, ``name@sha256:...``.

Knows Docker's rules for short names.  Must not know which registries are configured, or that
Docker Hub puts one-word names below ``library/``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.endpoint import is_host
from mirror.oci.reference import (
    InvalidName,
    InvalidReference,
    Reference,
    Repository,
    Tag,
    parse_repository,
    parse_tag,
    split_registry,
)

#: The registry of names without one, and the hosts that serve its images.
HUB: Final = "docker.io"
HUB_HOSTS: Final = ("registry-1.docker.io", "index.docker.io", "registry.hub.docker.com")
_DEFAULT_TAG: Final = Tag("latest")
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image: its registry (None: the default one), its repository there, its tag or digest."""

    registry: str | None
    repository: Repository
    reference: Reference

    def __str__(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        return f"{registry}{joined(self.repository, self.reference)}"


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list of images, or the mistake in it; ``number`` counts from 1."""

    number: int
    text: str
    image: ImageName | None
    mistake: str = ""


def joined(repository: str, reference: Reference) -> str:
    """``repository:tag`` or ``repository@digest``."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def parse_image(text: str) -> ImageName:
    """Parse the name of an image; if it has a tag and a digest, the tag is ignored.

    Raises:
        InvalidName, InvalidReference: the text is not the name of an image.
    """
    if "://" in text:
        _, _, rest = text[:_SHOWN].partition("://")
        raise InvalidName(f"an image is named without a scheme: {rest}")
    named, at, digest = text.partition("@")
    registry, rest = split_registry(named)
    if registry is not None and not is_host(registry):
        raise InvalidName(f"{registry[:_SHOWN]!r} is not the name of a registry")
    repository, colon, tag = rest.partition(":")
    reference: Reference = parse_tag(tag) if colon else _DEFAULT_TAG
    if at:
        try:
            reference = Digest.parse(digest)
        except InvalidDigest as error:
            raise InvalidReference(str(error)) from error
    return ImageName(registry, parse_repository(repository), reference)


def parse_list(lines: Iterable[str]) -> Iterator[Listed]:
    """Parse a list of images: one per line, ``#`` begins a comment, empty lines are skipped."""
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip("\ufeff \t\r\n\f\v")
        if not text:
            continue
        try:
            yield Listed(number, text, parse_image(text))
        except ValueError as error:
            yield Listed(number, text, None, str(error))


_LIBRARY: Final = "library/"
_FAMILIAR_SHOWN: Final = 12


def familiar_repository(registry: str, repository: str) -> str:
    """Return a repository as typed after ``docker pull``: without the registry for Docker Hub."""
    if registry == HUB:
        return repository.removeprefix(_LIBRARY)
    return f"{registry}/{repository}"


def familiar_reference(reference: str) -> str:
    """Return ``:tag``, or ``@sha256:`` and the first digits; empty for ``(private)``."""
    if reference.startswith("("):
        return ""
    if ":" not in reference:
        return f":{reference}" if reference else ""
    return f"@{short_digest(reference)}"


def short_digest(digest: str) -> str:
    """Return the algorithm and the first digits of a digest."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_FAMILIAR_SHOWN]}"
