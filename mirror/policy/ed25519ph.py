"""Ed25519ph (RFC 8032, 5.1), which cosign uses for Ed25519 keys and ``cryptography`` lacks.

Verification only: it handles public values, so that its running time reveals nothing.
"""

import hashlib
from typing import Final

_P: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_ROOT: Final = pow(2, (_P - 1) // 4, _P)  # of -1
#: dom2 with the flag of the pre-hash and an empty context.
_DOMAIN: Final = b"SigEd25519 no Ed25519 collisions\x01\x00"
_POINT_BYTES: Final = 32
_SIGN: Final = 2**255

#: X, Y, Z, T with x = X/Z, y = Y/Z, x * y = T/Z (5.1.4).
_Point = tuple[int, int, int, int]
_NEUTRAL: Final[_Point] = (0, 1, 1, 0)
_COFACTOR: Final = 8


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature of a message is valid for a public key of 32 bytes (5.1.7)."""
    if len(signature) != 2 * _POINT_BYTES or len(public) != _POINT_BYTES:
        return False
    key, at = _decoded(public), signature[:_POINT_BYTES]
    scalar = int.from_bytes(signature[_POINT_BYTES:], "little")
    if key is None or scalar >= _ORDER:
        return False
    if _encoded(_times(_COFACTOR, key)) == _encoded(_NEUTRAL):  # signatures for it can be guessed
        return False
    hashed = hashlib.sha512(_DOMAIN + at + public + hashlib.sha512(message).digest()).digest()
    factor = int.from_bytes(hashed, "little") % _ORDER
    minus = (-key[0] % _P, key[1], key[2], -key[3] % _P)
    return _encoded(_sum(_times(scalar, _BASE), _times(factor, minus))) == at


def _sum(a: _Point, b: _Point) -> _Point:
    left = (a[1] - a[0]) * (b[1] - b[0]) % _P
    right = (a[1] + a[0]) * (b[1] + b[0]) % _P
    both = 2 * a[3] * b[3] * _D % _P
    depth = 2 * a[2] * b[2] % _P
    e, f, g, h = right - left, depth - both, depth + both, right + left
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(factor: int, point: _Point) -> _Point:
    product = _NEUTRAL
    while factor:
        if factor & 1:
            product = _sum(product, point)
        point = _sum(point, point)
        factor >>= 1
    return product


def _decoded(data: bytes) -> _Point | None:
    """Return the point that 32 bytes mean (5.1.3), or None."""
    number = int.from_bytes(data, "little")
    y, odd = number % _SIGN, number >= _SIGN
    x = _x_of(y, odd=odd) if y < _P else None
    return None if x is None else (x, y, 1, x * y % _P)


def _x_of(y: int, *, odd: bool) -> int | None:
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (odd and not x):
        return None
    return _P - x if x % 2 != odd else x


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y + (x % 2) * _SIGN).to_bytes(_POINT_BYTES, "little")


def _base() -> _Point:
    point = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(_POINT_BYTES, "little"))
    assert point is not None, "it is on the curve"
    return point


_BASE: Final = _base()
