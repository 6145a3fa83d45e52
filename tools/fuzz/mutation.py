"""Small changes to messages, as plain values: a finding can be retried with fewer changes."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

_WORD = re.compile(rb"[A-Za-z0-9_]+|\r\n|[^A-Za-z0-9_]")
_LINE = re.compile(rb"[^\n]*\n")

#: Values that have broken parsers before.
ODD = (
    *(b"0", b"-1", b"+1", b"1_0", b"0x10", b"1e9", b"NaN", b"-0", b"65536", b"9" * 25, b"9" * 400),
    *(str(2**power - 1).encode() for power in (31, 32, 63, 64)),
    *(b"\0", b"\r", b"\n", b"\r\n", b"\t", b"\x7f", b"\x80", b"\xff\xfe", b"\r\n\r\n", b"\\", b'"'),
    *("\u0661".encode(), "\u212a".encode(), "\U0001f433".encode(), b"\xed\xa0\x80"),
    *(b"%00", b"%2e%2e", b"%2f", b"%ff", b"%", b"..", b"//", b"/../", b"@", b"#", b"?", b"[", b"]"),
    *(b"", b" ", b",", b";", b"=", b":", b"*", b"<", b">", b"{", b"}", b"null", b"true", b"[]"),
    *(b"a" * 300, b"a" * 9000, b"[" * 3000, b"," * 500, b"chunked", b"identity", b"gzip", b"close"),
)


@dataclass(frozen=True)
class Edit:
    """Bytes ``start`` to ``stop`` are replaced with ``piece``."""

    start: int
    stop: int
    piece: bytes


@dataclass(frozen=True)
class Message:
    """A valid message, and its changes."""

    valid: bytes
    edits: tuple[Edit, ...] = ()

    def bytes(self) -> bytes:
        """The changed message."""
        data = self.valid
        for edit in self.edits:
            data = data[: edit.start] + edit.piece + data[edit.stop :]
        return data

    def simpler(self) -> list["Message"]:
        """The messages with one change less."""
        edits = self.edits
        return [
            replace(self, edits=edits[:number] + edits[number + 1 :])
            for number in range(len(edits))
        ]


def mutated(rng: random.Random, valid: bytes, lines: Sequence[bytes], most: int = 4) -> Message:
    """A valid message with up to ``most`` changes; ``lines`` are whole lines that may be added."""
    message = Message(valid)
    for _ in range(rng.choice([0, *range(1, most + 1)])):
        edit = _edit(rng, message.bytes(), lines)
        message = replace(message, edits=(*message.edits, edit))
    return message


def _edit(rng: random.Random, data: bytes, lines: Sequence[bytes]) -> Edit:
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n"
    area = head if rng.random() < 0.8 else data
    words = [found.span() for found in _WORD.finditer(area)] or [(0, 0)]
    rows = [found.span() for found in _LINE.finditer(head)] or [(0, 0)]
    start, stop = rng.choice(words)
    _, end = rng.choice(rows)
    first, last = rng.choice(rows)
    return rng.choice(
        [
            *(Edit(start, stop, rng.choice(ODD)) for _ in range(3)),
            Edit(start, start, rng.choice(ODD)),
            Edit(start, rng.choice(words)[1], b""),
            Edit(start, len(data), b""),
            Edit(start, start + 1, rng.randbytes(1)),
            Edit(last, last, data[first:last]),
            Edit(end, end, rng.choice(lines)),
        ]
    )
