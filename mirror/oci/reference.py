"""Names of repositories, tags and references (OCI distribution spec, "Pulling manifests").

Knows the grammar of names.  Must not know which registries are configured.
"""

import re
from typing import Final, NewType

from mirror.oci.digest import Digest, InvalidDigest

Repository = NewType("Repository", str)
Tag = NewType("Tag", str)
Reference = Tag | Digest

_MAX_REPOSITORY_LENGTH: Final = 255
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_SHOWN: Final = 80


class InvalidName(ValueError):  # noqa: N818  # reads as the spec's NAME_INVALID
    """A text is not the name of a repository."""


class InvalidReference(ValueError):  # noqa: N818  # the same for tags and digests
    """A text is neither a tag nor a digest."""


def parse_repository(text: str) -> Repository:
    """Check the name of a repository.

    Raises:
        InvalidName: the text is not the name of a repository.
    """
    if len(text) > _MAX_REPOSITORY_LENGTH:
        raise InvalidName(f"a repository's name has at most {_MAX_REPOSITORY_LENGTH} characters")
    if not _REPOSITORY.fullmatch(text):
        raise InvalidName(
            f"{text[:_SHOWN]!r} is not the name of a repository: lower-case letters and digits, "
            "joined by '.', '_', '__' or '-', in parts joined by '/'"
        )
    return Repository(text)


def parse_tag(text: str) -> Tag:
    """Check a tag.

    Raises:
        InvalidReference: the text is not a tag.
    """
    if not _TAG.fullmatch(text):
        raise InvalidReference(
            f"{text[:_SHOWN]!r} is not a tag: 1 to 128 letters, digits, '_', '.' and '-', "
            "not beginning with '.' or '-'"
        )
    return Tag(text)


def parse_reference(text: str) -> Reference:
    """Parse a tag or a digest; a text with a colon is parsed as a digest.

    Raises:
        InvalidReference: the text is neither a tag nor a digest.
    """
    if ":" not in text:
        return parse_tag(text)
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidReference(str(error)) from error


def split_registry(name: str) -> tuple[str | None, str]:
    """Split the registry from a full name by Docker's rule; None if the name has no registry.

    The first part of several is a registry if it contains a dot or a colon, or is ``localhost``.
    """
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return first, rest
    return None, name
