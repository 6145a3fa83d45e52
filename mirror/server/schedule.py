"""When images are pulled ahead of time.  Pure: the time and the random number are arguments."""

from datetime import datetime, timedelta
from typing import Final

from mirror.config.warm import WarmConfig

#: Spreads the runs, so that not all mirrors of a company pull in the same second.
_SPREAD: Final = 0.05
_MAX_SPREAD_SECONDS: Final = 120.0
_FIRST_RETRY_SECONDS: Final = 60.0
_MAX_DOUBLINGS: Final = 10


def until_first(entry: WarmConfig, now: datetime, chance: float) -> float:
    """Seconds from the start of the mirror to the first run; ``chance`` is from 0 to 1."""
    if entry.at:
        return _until_time(entry, now) + _MAX_SPREAD_SECONDS * chance
    return min(entry.every.seconds * _SPREAD, _MAX_SPREAD_SECONDS) * chance


def until_next(entry: WarmConfig, now: datetime, failures: int, chance: float) -> float:
    """Seconds to the next run, sooner after ``failures`` incomplete runs in a row."""
    if entry.at:
        regular = _until_time(entry, now) + _MAX_SPREAD_SECONDS * chance
    else:
        regular = entry.every.seconds * (1 - _SPREAD * chance)
    if not failures:
        return regular
    retry = _FIRST_RETRY_SECONDS * float(2 ** min(failures - 1, _MAX_DOUBLINGS))
    return min(regular, retry * (1 + _SPREAD * chance))


def _until_time(entry: WarmConfig, now: datetime) -> float:
    """Seconds until the local clock next shows the time; an hour more or less when DST changes."""
    time = entry.time_of_day()
    assert time is not None
    hour, minute = time
    wall = now.replace(tzinfo=None)
    due = wall.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due <= wall:
        due += timedelta(days=1)
    # Converted by the system's time zone, which knows when DST changes.
    return due.astimezone().timestamp() - now.timestamp()
