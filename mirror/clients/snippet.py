"""Text for clients as a value: files, where they go, and what a person should know."""

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror as its clients see it.

    ``upstreams`` are the names of what it serves and ``default`` is the one that a name without
    registry means; ``ca_file`` is the certificate authority that a client must be told to trust,
    as a path on the client's machine, empty where it trusts the mirror anyway.
    """

    url: str
    upstreams: tuple[str, ...]
    default: str = HUB
    ca_file: str = ""

    @property
    def address(self) -> str:
        """The url without a slash at its end."""
        return self.url.rstrip("/")

    @property
    def netloc(self) -> str:
        """``host[:port]``, as it stands before an image."""
        return urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        """Without port and brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def plain(self) -> bool:
        """Whether it is reached without TLS."""
        return urlsplit(self.url).scheme == "http"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a client's configuration, whole."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Snippet:
    """Files to paste, what a person should know about them, and where the CA must be copied."""

    files: tuple[File, ...]
    advice: tuple[str, ...]
    ca_copy: str = ""

    @property
    def text(self) -> str:
        """The files one after the other; where there can be several each begins with its path."""
        return "\n".join(file.text for file in self.files)


def commented(path: str, lines: list[str]) -> File:
    """A file whose first line says where it goes."""
    return File(path, "\n".join([f"# {path}", *lines]) + "\n")


def quoted(text: str) -> str:
    """As a string of TOML or YAML, both of which take JSON's."""
    return json.dumps(text, ensure_ascii=False)


def copying(mirror: Mirror, path: str) -> list[str]:
    """How the CA gets to where the client looks for it."""
    return [f"  install -D -m 644 {mirror.ca_file} {path}"] if mirror.ca_file else []
