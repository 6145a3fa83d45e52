"""The Authorization field: credentials of a client (RFC 9110, 11.6.2).

Knows the Basic scheme (RFC 7617).  Must not know which server checks the credentials.
"""

import base64
import binascii


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
