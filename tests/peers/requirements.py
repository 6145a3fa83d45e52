"""Tests with real programs: skipped with a reason where there are none, failed in CI."""

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str, root: bool = False) -> None:
    """Skip unless the programs are installed (and we are root); in CI that is a failure."""
    missing = [program for program in programs if shutil.which(program) is None]
    reason = f"needs {', '.join(missing)}" if missing else ""
    if root and os.geteuid() != 0:
        reason = reason or "needs root"
    if reason:
        lacking(reason)


def lacking(reason: str) -> NoReturn:
    """Skip, with what this machine lacks; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to run this: {reason}")
    pytest.skip(reason)
