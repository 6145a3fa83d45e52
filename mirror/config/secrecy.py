"""What must not be shown, and what is shown instead."""

import re
from typing import Final

MASK: Final = "********"
# Greedy on purpose: a password may itself hold an @ or a slash.
_USERINFO: Final = re.compile(r"://\S*@")


def masked(text: str) -> str:
    """The text with user and password of every address in it masked."""
    return _USERINFO.sub(f"://{MASK}@", text)
