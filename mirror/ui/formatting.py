"""Format numbers and times for people.  Sizes have the units of the configuration (GiB)."""

import math
from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP: Final = 1024
_LARGE: Final = 100  # from this value on, no decimals
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
NBSP: Final = "\N{NO-BREAK SPACE}"


def size(count: float) -> str:
    """Bytes: ``812 B``, ``3.4 MiB``, ``31.2 GiB``."""
    value, unit = abs(count), _UNITS[0]
    for unit in _UNITS:
        if round(value, 1) < _STEP:
            break
        value /= _STEP if unit != _UNITS[-1] else 1
    places = 0 if unit == _UNITS[0] or value >= _LARGE or value == int(value) else 1
    sign = "\N{MINUS SIGN}" if count < 0 else ""
    return f"{sign}{value:.{places}f}{NBSP}{unit}"


def plain_size(count: float) -> str:
    """As :func:`size`, with an ordinary space, for terminals and logs."""
    return size(count).replace(NBSP, " ")


def number(value: float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def share(part: float | None) -> str:
    """``96.4 %``; never rounded to 0 % or 100 %.  A dash for None."""
    if part is None:
        return "\N{EN DASH}"
    if part <= 0 or part >= 1:
        return f"{round(part) * 100}{NBSP}%"
    return f"{min(max(part * 100, 0.1), 99.9):.1f}{NBSP}%"


def duration(seconds: float) -> str:
    """``40 ms``, ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``, ``2 d 23 h``."""
    if seconds < 0.0995:
        return f"{max(seconds, 0) * 1000:.0f}{NBSP}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}{NBSP}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}{NBSP}min" + _rest(whole % _MINUTE, "s")
    if whole < _DAY:
        return f"{whole // _HOUR}{NBSP}h" + _rest(whole % _HOUR // _MINUTE, "min")
    return f"{whole // _DAY}{NBSP}d" + _rest(whole % _DAY // _HOUR, "h")


def _rest(number: int, unit: str) -> str:
    return f"{NBSP}{number}{NBSP}{unit}" if number else ""


def age(seconds: float) -> str:
    """``now``, ``12 s ago``, ``3 h ago``, ``5 days ago``."""
    if seconds < 1:
        return "now"
    for limit, length, unit in ((_MINUTE, 1, "s"), (_HOUR, _MINUTE, "min"), (_DAY, _HOUR, "h")):
        if seconds < limit:
            return f"{math.floor(seconds / length)}{NBSP}{unit} ago"
    days = math.floor(seconds / _DAY)
    return f"{days}{NBSP}day{'s' if days > 1 else ''} ago"


def moment(seconds: float) -> str:
    """A time (Unix seconds) in the format of HTML's ``datetime`` attribute."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def date(seconds: float) -> str:
    """``14 March 2026``, in the mirror's own time zone."""
    local = datetime.fromtimestamp(seconds).astimezone()
    return f"{local.day}{NBSP}{local:%B}{NBSP}{local.year}"


def clock(seconds: float, now: float) -> str:
    """``14:05`` today, else ``3 March, 14:05``, in the mirror's own time zone."""
    local, today = (datetime.fromtimestamp(each).astimezone() for each in (seconds, now))
    time = f"{local:%H:%M}"
    return time if local.date() == today.date() else f"{local.day}{NBSP}{local:%B}, {time}"
