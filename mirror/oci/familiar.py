"""Familiar names: image names as people type them, and short digests."""

from typing import Final

_HUB: Final = "docker.io"
_LIBRARY: Final = "library/"
_SHOWN: Final = 12


def familiar_repository(registry: str, repository: str) -> str:
    """Return a repository as typed after ``docker pull``: without the registry for Docker Hub."""
    if registry == _HUB:
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
    return f"{algorithm}:{digits[:_SHOWN]}"
