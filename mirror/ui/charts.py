"""The geometry of the charts, drawn as SVG by the templates; pure values.

All coordinates are in a box that is ``WIDTH`` wide for each period and ``HEIGHT`` high; the style
sheet stretches it.  A period without requests has no hit rate, and leaves a gap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from mirror.stats.report import Figures, History
from mirror.ui import formatting

WIDTH: Final = 10
HEIGHT: Final = 100
_HOUR: Final = 3600
_LEAST: Final = 1.5  # height of the smallest bar, so that it can be seen


@dataclass(frozen=True, slots=True)
class Slot:
    """One period of a chart."""

    label: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar on the ground line; ``x`` is its left edge."""

    x: float
    height: float
    kind: str = ""

    @property
    def y(self) -> float:
        return HEIGHT - self.height


@dataclass(frozen=True, slots=True)
class Chart:
    """The figures of consecutive periods; ``name`` names all of them together."""

    name: str
    slots: Sequence[Slot]

    @property
    def width(self) -> int:
        return WIDTH * len(self.slots)

    @property
    def total(self) -> Figures:
        return sum((slot.figures for slot in self.slots), Figures())

    @property
    def most(self) -> int:
        """The largest number of bytes in a period, sent or received."""
        return max(
            max(each.figures.served_bytes, each.figures.upstream_bytes) for each in self.slots
        )

    @property
    def bars(self) -> list[Bar]:
        """Two bars for each period: bytes to clients, and bytes from upstream."""
        scale = HEIGHT / max(self.most, 1)
        return [
            Bar(place * WIDTH + offset, max(count * scale, _LEAST), kind)
            for place, slot in enumerate(self.slots)
            for offset, count, kind in (
                (1, slot.figures.served_bytes, "served"),
                (5.25, slot.figures.upstream_bytes, "fetched"),
            )
            if count > 0
        ]

    @property
    def line(self) -> str:
        """The hit rate as the data of a path; a period alone is a dot."""
        parts, drawn = [], False
        for place, slot in enumerate(self.slots):
            rate = slot.figures.hit_rate
            if rate is not None:
                x, y = place * WIDTH + WIDTH / 2, HEIGHT * (1 - rate)
                parts.append(f"{'L' if drawn else 'M'}{x:g} {y:.1f}{'' if drawn else 'h0'}")
            drawn = rate is not None
        return "".join(parts)

    @property
    def lowest(self) -> float | None:
        """The lowest hit rate of a period, None without requests."""
        rates = [slot.figures.hit_rate for slot in self.slots]
        return min((rate for rate in rates if rate is not None), default=None)


def hourly(history: History, now: float, hours: int) -> Chart:
    """The last hours, this one included."""
    last = int(now // _HOUR)
    return Chart(
        f"Last {hours} hours",
        [
            Slot(_clock(hour), sum(history.hours.get(hour, {}).values(), Figures()))
            for hour in range(last - hours + 1, last + 1)
        ],
    )


def daily(history: History, days: Sequence[str]) -> Chart:
    return Chart(
        f"Last {len(days)} days",
        [Slot(_day(day), sum(history.days.get(day, {}).values(), Figures())) for day in days],
    )


def spark(values: Sequence[int]) -> list[Bar]:
    """The bars of a small chart; none without values."""
    most = max(values, default=0)
    return [
        Bar(place * WIDTH + 1, max(HEIGHT * value / most, 4.0))
        for place, value in enumerate(values)
        if value > 0
    ]


def sparks(history: History, days: Sequence[str]) -> Mapping[str, list[Bar]]:
    """The bytes sent on each day, for each upstream."""
    names = {name for upstreams in history.days.values() for name in upstreams}
    none = Figures()
    return {
        name: spark([history.days.get(day, {}).get(name, none).served_bytes for day in days])
        for name in names
    }


def _clock(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour * _HOUR).astimezone():%H:%M}"


def _day(day: str) -> str:
    parsed = date.fromisoformat(day)
    return f"{parsed.day}{formatting.NBSP}{parsed:%b}"
