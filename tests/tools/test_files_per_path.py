"""``python -m tools.files_per_path``: counts the files on each path through the mirror."""

import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_each_path_goes_through_the_files_that_are_listed():
    command = [sys.executable, "-m", "tools.files_per_path", "--files"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=True)

    parts = re.split(r"^(\w[\w ]*?) +(\d+) files .*\n", done.stdout, flags=re.MULTILINE)[1:]
    files = dict(zip(parts[::3], map(str.split, parts[2::3]), strict=True))
    counts = dict(zip(parts[::3], map(int, parts[1::3]), strict=True))
    assert counts == {path: len(listed) for path, listed in files.items()}
    assert "pull/fill.py" in files["blob miss"]
    assert "pull/fill.py" not in files["known blob hit"]
    assert "pull/manifests.py" in files["tag revalidation"]
    assert "inventory/removal.py" in files["mirror rm"]
