"""Versions of clients, and what follows for the capability ``referrers`` in ``hosts.toml``."""

import re
import shutil
import subprocess
from typing import Final

_SECONDS: Final = 5
_NUMBERS: Final = re.compile(r"\bv?(\d+)\.(\d+)")
#: Per client: the last version that rejects a file with the word, the first that needs it.
_REJECTS: Final = {"containerd": (2, 1), "Docker": (28, 999)}
_NEEDS: Final = {"containerd": (2, 2), "Docker": (29, 1)}


def containerd_version() -> str:
    """Return what the containerd of this machine says about itself; empty if there is none."""
    program = shutil.which("containerd")
    if program is None:
        return ""
    try:
        said = subprocess.run(  # noqa: S603  # a program of this machine
            [program, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return said.stdout


def knows_referrers(client: str, version: str) -> bool | None:
    """Whether a client needs the capability ``referrers`` (True) or rejects it (False).

    None if this is unknown.
    """
    numbers = _NUMBERS.search(version)
    if numbers is None or client not in _NEEDS:
        return None
    found = int(numbers[1]), int(numbers[2])
    if found >= _NEEDS[client]:
        return True
    return False if found <= _REJECTS[client] else None
