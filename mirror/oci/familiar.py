"""What people call things: the name they type to pull an image, a digest short enough to read."""

from typing import Final

_HUB: Final = "docker.io"
_LIBRARY: Final = "library/"
_SHOWN: Final = 12


def familiar_repository(registry: str, repository: str) -> str:
    """A repository as one types it after ``docker pull``: Docker Hub's need not be named."""
    if registry == _HUB:
        return repository.removeprefix(_LIBRARY)
    return f"{registry}/{repository}"


def familiar_reference(reference: str) -> str:
    """What comes after it: ``:tag``, or ``@sha256:`` and the first digits; no ``(private)``."""
    if reference.startswith("("):
        return ""
    if ":" not in reference:
        return f":{reference}" if reference else ""
    return f"@{short_digest(reference)}"


def short_digest(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_SHOWN]}"
