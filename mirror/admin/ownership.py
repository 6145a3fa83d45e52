"""Checks the owner of a cache: the mirror's own user could not read files written by root."""

import os
import pwd
from pathlib import Path

from mirror.user_error import UserError


def check_owner(directory: Path) -> None:
    """Check that root does not write into another user's cache.

    Raises:
        UserError: root would.
    """
    try:
        owner = directory.stat().st_uid
    except OSError:  # it does not exist yet, or opening it will report the error
        return
    if os.geteuid() == 0 != owner:
        name = _name(owner)
        raise UserError(
            f"the cache {directory} is {name}'s, who could not read what root writes there: "
            f"run this as {name}, such as by sudo -u {name}"
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # for example a user of a container
        return f"#{uid}"
