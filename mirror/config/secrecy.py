"""Masks secrets in texts."""

import re
from typing import Final

MASK: Final = "********"
# Greedy on purpose: a password may contain an @ or a slash.
_USERINFO: Final = re.compile(r"://\S*@")


def masked(text: str) -> str:
    """Mask user and password of every address in a text."""
    return _USERINFO.sub(f"://{MASK}@", text)
