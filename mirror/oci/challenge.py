"""The WWW-Authenticate field: challenges of a registry (RFC 9110, 11.6.1).

Knows the grammar of challenges.  Must not know how a client answers them.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

# No repetition here can match a text in two ways, so a hostile header costs only linear time.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_END: Final = r"(?=[\s,]|\Z)"
_SCHEME: Final = re.compile(rf"[\s,]*({_WORD}){_END}", re.ASCII)
_TOKEN68: Final = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|\Z))", re.ASCII)
_PARAMETER: Final = re.compile(
    # Without quotes, some registries write an address, which is no word of the grammar.
    rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+)){_END}',
    re.ASCII | re.DOTALL,
)
_MAX_CHALLENGES: Final = 16
_MAX_PARAMETERS: Final = 32  # of one challenge
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme and its parameters; all names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges of one field, at most 16; the first unreadable one ends the list.

    A token68 is skipped: the schemes of registries do not use it.
    """
    challenges: list[Challenge] = []
    position = 0
    while len(challenges) < _MAX_CHALLENGES and (scheme := _SCHEME.match(header, position)):
        position = scheme.end()
        if opaque := _TOKEN68.match(header, position):
            position = opaque.end()
        parameters, position = _parse_parameters(header, position)
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


def _parse_parameters(header: str, position: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    count = 0
    while (found := _PARAMETER.match(header, position)) and count < _MAX_PARAMETERS:
        count += 1
        name, quoted, bare = found.groups()
        value = bare if quoted is None else _ESCAPE.sub(r"\1", quoted)
        parameters.setdefault(name.lower(), value)
        position = found.end()
    return parameters, position


def with_realms(header: str, correct: Callable[[str], str]) -> str:
    """Return the field with corrected addresses of its token services."""
    for challenge in parse_challenges(header):
        realm = challenge.parameters.get("realm", "")
        if challenge.scheme == "bearer":
            header = header.replace(f'"{realm}"', f'"{correct(realm)}"', 1)
    return header


def over_tls(realm: str) -> str:
    """Return the address of a token service with https.

    A registry behind a server that adds TLS may name http.  Credentials never go there.
    """
    scheme, mark, rest = realm.partition("://")
    if scheme.lower() != "http":
        return realm
    netloc, slash, path = rest.partition("/")
    return f"https{mark}{netloc.removesuffix(':80')}{slash}{path}"


def parse_basic(field: str) -> tuple[str, str] | None:
    """Return user and password of an Authorization field, None if it has none."""
    scheme, _, encoded = field.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
