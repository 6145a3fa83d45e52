"""How fast it goes and how long it takes, by a clock of the test's own."""

import pytest

from mirror.cli.progress import ByteProgress, ImagesProgress, Rate
from mirror.oci.reference import parse_repository, parse_tag
from mirror.registry_client.client import Place
from mirror.registry_client.pull import Pulled, Wanted

APP = Wanted("app:1", Place("docker.io", parse_repository("library/app")), parse_tag("1"))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_of_the_last_ten_seconds_and_begins_with_the_first_byte():
    clock = Clock()
    rate = Rate(clock)
    clock.now += 1000
    assert (rate.now(), rate.left(5)) == (0, "")
    for _ in range(20):
        rate.add(100)
        clock.now += 1
    assert rate.now() == pytest.approx(100)
    assert rate.left(36_000) == "6 min 0 s"
    assert rate.left(3_600 * 200) == "2 h 0 min"
    assert rate.left(1_000) == "10 s"
    clock.now += 60
    assert rate.now() == 0


def test_in_a_log_there_is_a_line_every_ten_seconds_and_one_per_image(capsys):
    clock = Clock()
    with ImagesProgress(clock) as progress:
        progress.expected(2)
        progress.planned(APP, 4_000_000)
        progress.began(APP)
        progress.came(APP, 1_000_000, fetched=False)
        for _ in range(25):
            clock.now += 1
            progress.came(APP, 100_000, fetched=True)
        progress.ended(Pulled(APP, None, 2_500_000, 1_000_000, "broke off"))
    assert capsys.readouterr().err.splitlines() == [
        "0 of 2 images, 1.9 MiB of 3.8 MiB, 109 KiB/s, 18 s left",
        "0 of 2 images, 2.9 MiB of 3.8 MiB, 107 KiB/s, 9 s left",
        "app:1: failed: broke off",
    ]


def test_in_a_log_a_single_task_has_a_line_every_ten_seconds(capsys):
    clock = Clock()
    with ByteProgress("importing", clock) as progress:
        progress.expect(4_000_000)
        for _ in range(25):
            clock.now += 1
            progress.advance(100_000)
    assert capsys.readouterr().err.splitlines() == [
        "importing: 977 KiB of 3.8 MiB",
        "importing: 1.9 MiB of 3.8 MiB",
    ]
