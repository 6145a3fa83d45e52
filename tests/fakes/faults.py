"""What can go wrong upstream, as data: which requests, how often, and what happens to them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """The next ``times`` requests of ``kind`` (and ``method``) go wrong like this.

    ``status`` answers with that status and ``body``, in two segments of which the second is sent
    once ``gate`` is set, or a byte every ``trickle`` seconds; ``refuse`` closes before any answer;
    ``hang_before`` never answers; the others answer and then, at byte ``at`` of what is sent:
    ``flip`` a bit, ``cut`` (end the connection), ``reset`` it, ``stall`` for ever.
    ``ignore_range`` answers 200 to a ranged request; ``headers`` replace header fields.
    """

    kind: str = "blob"
    method: str = ""
    times: int = 1
    status: int = 0
    body: bytes = b""
    gate: asyncio.Event | None = None
    trickle: float = 0.0
    headers: Mapping[str, str | None] = field(default_factory=dict)
    refuse: bool = False
    hang_before: bool = False
    flip: int | None = None
    cut: int | None = None
    reset: int | None = None
    stall: int | None = None
    ignore_range: bool = False
    unknown_length: bool = False
    endless: bool = False
    redirect: str = ""

    def matches(self, kind: str, method: str) -> bool:
        return self.times > 0 and self.kind in {"", kind} and self.method in {"", method}

    def break_at(self) -> int | None:
        points = [point for point in (self.cut, self.reset, self.stall) if point is not None]
        return min(points, default=None)
