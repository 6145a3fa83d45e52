"""Cache directories of former and of newer versions.

``cache-0.2.0.tar.gz`` is the directory of a mirror of version 0.2.0 that served the image below,
a list of tags and a 404, and was then killed in the middle of a large blob.
"""

import os
import tarfile
import time
from pathlib import Path

import pytest

from mirror.stats.queries import read_report
from mirror.user_error import UserError
from tests.fakes import image
from tests.running import running

FORMER = Path(__file__).parent / "cache-0.2.0.tar.gz"
APP = image(b"layer of app " * 1000)
LARGE = b"0123456789abcdef" * 200_000
REPO = "/v2/library/app"
EVER = {"stale_if_error": "36500d"}


@pytest.fixture
def former(tmp_path) -> Path:
    with tarfile.open(FORMER) as packed:
        packed.extractall(tmp_path, filter="data")
    for file in (tmp_path / "cache" / "partial").iterdir():
        os.utime(file)  # old ones expire
    return tmp_path / "cache"


async def test_what_the_previous_release_has_cached_is_served_without_upstream(former):
    since = read_report(former / "ledger", time.time()).since
    async with running(former, {"docker.io": "http://127.0.0.1:9"}, tags=EVER) as mirror:
        for reference in ("1", APP.digest):
            answer = await mirror.get(f"{REPO}/manifests/{reference}")
            assert (answer.status, answer.body) == (200, APP.manifest)
        for digest, blob in zip(APP.digests, APP.blobs, strict=True):
            answer = await mirror.get(f"{REPO}/blobs/{digest}")
            assert (answer.status, answer.body) == (200, blob)
            assert answer.headers["Cache-Status"] == "mirror; hit"
        assert (await mirror.get(f"{REPO}/tags/list")).status == 200
        assert (await mirror.get(f"{REPO}/manifests/none")).status == 404
    report = read_report(former / "ledger", time.time())
    assert report.since == since, "the statistics go on"
    assert report.total.answered > 6, "more than this test has asked for"
    assert (former / "format").read_text() == "1\n"


async def test_a_download_that_the_previous_release_began_is_resumed(former, upstream):
    digest = upstream.add_blob(LARGE)
    async with running(former, {"docker.io": upstream.url}) as mirror:
        assert (await mirror.get(f"{REPO}/blobs/{digest}")).body == LARGE
    assert 0 < upstream.sent[digest] < len(LARGE)


@pytest.mark.parametrize("found", ["2\n", "1.5", "\xff"])
async def test_a_newer_format_is_refused_in_one_line_and_not_touched(former, found):
    (former / "format").write_text(found, encoding="latin-1")
    before = {file: file.stat().st_mtime_ns for file in former.rglob("*")}
    with pytest.raises(UserError) as refused:
        async with running(former, {"docker.io": "http://127.0.0.1:9"}):
            pass
    (line,) = refused.value.lines
    assert f"the cache directory {former} has the format" in line
    assert "run the newer version" in line
    assert {file: file.stat().st_mtime_ns for file in former.rglob("*")} == before
