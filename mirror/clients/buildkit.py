"""Standalone BuildKit and the docker-container driver of buildx: ``buildkitd.toml``.

Builds of the Docker daemon itself use Docker's configuration.
"""

from typing import Final

from mirror.clients.snippet import Mirror, Snippet, commented, is_loopback, quoted

_PATH: Final = "/etc/buildkit/buildkitd.toml"


def buildkit(mirror: Mirror) -> Snippet:
    """Return a table per registry; BuildKit puts the path of a mirror after ``/v2/``."""
    lines: list[str] = []
    for name in mirror.upstreams:
        lines += [f"[registry.{quoted(name)}]"]
        lines += [f"  mirrors = [{quoted(f'{mirror.netloc}/{name}')}]", ""]
    lines += _how(mirror)
    advice = (
        f"Put this into {_PATH} (merge it with what is there; without root:",
        "~/.config/buildkit/buildkitd.toml), then: systemctl restart buildkit",
        "For buildx with a docker-container driver make a builder with it:",
        "  docker buildx create --use --buildkitd-config buildkitd.toml    # older: --config",
        "A docker build without buildx's own builder uses Docker's configuration:",
        "  mirror client docker",
    )
    return Snippet((commented(_PATH, lines[:-1]),), advice)


def _how(mirror: Mirror) -> list[str]:
    """Return the table for the mirror's host; BuildKit's default for this machine is http."""
    how = []
    if mirror.plain or is_loopback(mirror.host):
        how.append(f"  http = {'true' if mirror.plain else 'false'}")
    if mirror.ca_file:
        how.append(f"  ca = [{quoted(mirror.ca_file)}]")
    return [f"[registry.{quoted(mirror.netloc)}]", *how, ""] if how else []
