"""Whose cache a directory is: what root writes there, the mirror's own user could not read."""

import os
import pwd
from pathlib import Path

from mirror.admin.errors import OperateError


def check_owner(directory: Path) -> None:
    """Make sure that root does not write into another user's cache.

    Raises:
        OperateError: it would.
    """
    try:
        owner = directory.stat().st_uid
    except OSError:  # it is to be made, or whoever opens it tells what is wrong
        return
    if os.geteuid() == 0 != owner:
        name = _name(owner)
        raise OperateError(
            f"the cache {directory} is {name}'s, who could not read what root writes there: "
            f"run this as {name}, such as by sudo -u {name}"
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # of a container, say
        return f"#{uid}"
