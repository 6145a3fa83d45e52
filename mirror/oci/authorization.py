"""Authorization: what a client says of itself (RFC 9110, 11.6.2).

Knows the Basic scheme (RFC 7617).  Must not know whom the credentials are for.
"""

import base64
import binascii


def parse_basic(field: str) -> tuple[str, str] | None:
    """User and password of an Authorization field, None where it holds none."""
    scheme, _, encoded = field.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
