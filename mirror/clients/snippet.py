"""Values for the configuration of a client: files, their paths, and advice."""

import json
from dataclasses import dataclass
from typing import Final

from mirror.clients.address import ClientUrl

HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Mirror(ClientUrl):
    """The mirror as its clients see it.

    ``upstreams`` are the names of its registries, and ``default`` is the one for image names
    without a registry; ``ca_file`` is the path, on the client's machine, of the CA that the client
    must trust, empty if it needs none.  ``referrers``: the client knows that capability of a host.
    """

    upstreams: tuple[str, ...]
    default: str = HUB
    ca_file: str = ""
    referrers: bool = False

    @property
    def address(self) -> str:
        """The url without a slash at its end."""
        return self.url.rstrip("/")


@dataclass(frozen=True, slots=True)
class File:
    """A complete file of a client's configuration."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Snippet:
    """Files to install, advice about them, and the path where the CA must be copied to."""

    files: tuple[File, ...]
    advice: tuple[str, ...]
    ca_copy: str = ""

    @property
    def text(self) -> str:
        """All files in one text; each begins with its path if there can be several."""
        return "\n".join(file.text for file in self.files)


def commented(path: str, lines: list[str]) -> File:
    """Return a file whose first line is a comment with its path."""
    return File(path, "\n".join([f"# {path}", *lines]) + "\n")


def quoted(text: str) -> str:
    """Return a text as a string of TOML or YAML; both accept a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def copying(mirror: Mirror, path: str) -> list[str]:
    """Return the command that copies the CA to the path where the client looks for it."""
    return [f"  install -D -m 644 {mirror.ca_file} {path}"] if mirror.ca_file else []
