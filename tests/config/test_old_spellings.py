"""Old spellings keep their meaning, and the log of a starting mirror names them once."""

from pathlib import Path

import pytest

from mirror.config import load
from mirror.config.mistakes import old_spellings
from tests.config.conftest import WriteToml
from tests.peers.mirror import MirrorProcess

HUB = '[upstreams."docker.io"]\n'
STAR = "in the next release * matches no slash: write "
OTHER = "in the next release * and ? match no slash, and [ is not special"
UNIT = "the next release does not know this unit: write "


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('[cache]\nmax_size = "50GB"', f"cache.max_size: found '50GB': {UNIT}'46.57GiB'"),
        ('[fill]\nsegment = "2 MB"', f"fill.segment: found '2 MB': {UNIT}'1.907MiB'"),
        (HUB + 'max_rate = "500kB"',
         f"upstreams.\"docker.io\".max_rate: found '500kB': {UNIT}'488.3KiB'"),
        (HUB + 'allow = ["*"]', f"upstreams.\"docker.io\".allow: found '*': {STAR}'**'"),
        (HUB + 'deny = ["team/*"]',
         f"upstreams.\"docker.io\".deny: found 'team/*': {STAR}'team/**'"),
        (HUB + 'deny = ["*/app"]', f"upstreams.\"docker.io\".deny: found '*/app': {OTHER}"),
        (HUB + 'deny = ["team*"]', f"upstreams.\"docker.io\".deny: found 'team*': {OTHER}"),
        (HUB + 'deny = ["[ab]/*"]', f"upstreams.\"docker.io\".deny: found '[ab]/*': {OTHER}"),
    ],
)  # fmt: skip
def test_an_old_spelling_is_told_with_its_key_and_what_to_write(
    toml: str, line: str, write_toml: WriteToml
) -> None:
    (told,) = old_spellings(load(write_toml(toml)))
    assert told.startswith(line)


@pytest.mark.parametrize(
    "toml",
    [
        "",
        '[cache]\nmax_size = "50GiB"\nmin_free = "2%"',
        "[cache]\nmax_size = 1000000000",
        HUB + 'allow = ["**", "team/app", "team/**/base-*"]',
        HUB + 'username = "5GB"\npassword = "x"',
        '[proxy]\nallow = ["*.example.com"]\n[[keep]]\nimages = ["ghcr.io/*"]',
    ],
)
def test_what_is_spelt_as_today_is_not_told(toml: str, write_toml: WriteToml) -> None:
    assert list(old_spellings(load(write_toml(toml)))) == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mirror_that_starts_says_it_once(tmp_path: Path, workers: int) -> None:
    mirror = MirrorProcess(
        tmp_path, {"docker.io": "http://127.0.0.1:1"}, 'allow = ["team/*"]', workers=workers
    )
    mirror.start()
    mirror._process.wait_until(lambda: "old spelling" in mirror.output())
    assert mirror.terminate() == 0
    told = [line for line in mirror.output().splitlines() if "old spelling" in line]
    (line,) = told
    assert " warning old spelling: upstreams.\"docker.io\".allow: found 'team/*'" in line
