"""The clock of rules that wait for days: it outlasts restarts, and settings of the system clock."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Final

from mirror.policy.rules import Moment

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; goes on during suspend


def moment() -> Moment:
    """Return the present moment."""
    if _STEADY is None or not (boot := _boot()):
        return Moment(time.time())
    return Moment(time.time(), boot, time.clock_gettime(_STEADY))


@lru_cache(1)
def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
