"""The fuzz programs run; ``make fuzz`` runs them for minutes and with another seed each time."""

import logging
import os
import re
import secrets
import time

import pytest

from tools.fuzz.clients import fuzz_clients
from tools.fuzz.findings import listening
from tools.fuzz.interleavings import Case, try_interleavings
from tools.fuzz.mutation import Edit, Message
from tools.fuzz.parsers import PARSERS, Parser
from tools.fuzz.searching import by_atheris, by_hypothesis, has_atheris
from tools.fuzz.upstreams import fuzz_upstreams

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("parser", PARSERS, ids=[parser.name for parser in PARSERS])
def test_every_parser_bears_its_own_seeds(parser):
    for text in parser.seeds:
        parser.try_all(text)


def test_hypothesis_finds_what_is_wrong_with_a_parser():
    report = by_hypothesis(Parser("broken", lambda data: 1 // (b"=" not in data), (b"a=b",)), 5, 1)
    (finding,) = report.findings
    assert "=" in finding.case
    assert "ZeroDivisionError" in finding.why


@pytest.mark.skipif(not has_atheris(), reason="atheris cannot be had here")
def test_atheris_runs_a_parser():
    report = by_atheris(next(each for each in PARSERS if each.name == "digest"), 1, 1)
    assert report.cases > 0
    assert report.findings == []


def test_a_slow_parser_is_a_finding():
    def slow(_: bytes) -> None:
        started = time.thread_time()
        while time.thread_time() - started < 0.6:
            pass

    with pytest.raises(AssertionError, match=r"0\.[6-9].* s for 1 bytes"):
        Parser("slow", slow, ()).try_all(b"x")


def test_clients_may_send_anything():
    reports = fuzz_clients(1.5, 1)
    assert [report.findings for report in reports] == [[], []]
    assert all(report.cases for report in reports)


def test_an_upstream_may_answer_anything():
    (report,) = fuzz_upstreams(0.5, 1)
    assert report.findings == []
    assert report.cases > 0


def test_a_mirror_that_repeats_answers_answers_as_one_that_does_not():
    in_ci = os.environ.get("CI") == "true"
    seed = secrets.randbelow(1 << 31) if in_ci else 1
    report = try_interleavings(seed, **({"seconds": 60} if in_ci else {"rounds": 200}))
    assert report.findings == [], f"seed {seed}"
    assert report.cases > 0


def test_an_interleaving_is_drawn_by_its_seed_and_has_simpler_ones():
    case = Case(seed=5, number=1)
    steps = case.steps()
    assert steps == Case(seed=5, number=1).steps() != Case(seed=6, number=1).steps()
    assert b"User-Agent: 0000000001" in b"".join(segment for _, segment in steps)
    simpler = list(case.simpler())
    assert [each.steps() for each in simpler] == [
        steps[:at] + steps[at + 1 :] for at in range(len(steps))
    ]


def test_a_task_whose_exception_nobody_sees_is_noticed():
    with listening() as errors:
        logging.getLogger("asyncio").error("Task exception was never retrieved")
    assert re.search("never retrieved", errors[0])


def test_a_change_less_is_simpler():
    message = Message(b"abc", (Edit(0, 1, b"x"), Edit(1, 1, b"y")))
    assert message.bytes() == b"xybc"
    assert [each.bytes() for each in message.simpler()] == [b"aybc", b"xbc"]
