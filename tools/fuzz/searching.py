"""Runs the parsers: with atheris if it is installed, and with hypothesis everywhere."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tools.fuzz.findings import Finding, Report
from tools.fuzz.parsers import PARSERS, Parser

_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_BATCH = 200
_SPARE_SECONDS = 60


class _FoundError(Exception):
    """Carries the input out of hypothesis, which replaces it with a smaller one."""

    def __init__(self, data: bytes) -> None:
        super().__init__(repr(data))
        self.data = data


def has_atheris() -> bool:
    """Whether coverage-guided fuzzing works on this machine."""
    return importlib.util.find_spec("atheris") is not None


def by_hypothesis(parser: Parser, seconds: float, first_seed: int) -> Report:
    """Run hypothesis on a parser and its seeds, for a while."""
    report = Report(f"parser {parser.name}")
    stop = time.monotonic() + seconds

    def check(data: bytes) -> None:
        report.cases += 1
        try:
            parser.try_all(data)
        except Exception as error:
            raise _FoundError(data) from error

    phases = (Phase.generate, Phase.shrink)
    quiet = settings(
        max_examples=_BATCH,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    number = first_seed
    while time.monotonic() < stop and not report.findings:
        try:
            seed(number)(quiet(given(_inputs(parser))(check)))()
        except _FoundError as found:
            why = "".join(traceback.format_exception(found.__cause__))
            report.findings.append(Finding(repr(found.data), why))
        number += 1
    return report


def _inputs(parser: Parser) -> st.SearchStrategy[bytes]:
    words = sorted({word for text in parser.seeds for word in re.split(rb"(\W|_)", text) if word})
    odd = [
        b"\0",
        b"\r\n",
        b"\xff",
        "\u0661".encode(),
        b"9" * 25,
        b"-",
        b"%2e",
        b"null",
        b"[" * 2000,
    ]
    piece = st.sampled_from([*words, *odd]) | st.binary(max_size=6)
    made = st.lists(piece, max_size=24).map(b"".join)
    changed = st.builds(
        lambda text, at, size, piece: (
            text[: at % (len(text) + 1)] + piece + text[at % (len(text) + 1) + size :]
        ),
        st.sampled_from(parser.seeds),
        st.integers(0, 2000),
        st.integers(0, 12),
        piece,
    )
    return changed | made | st.binary(max_size=200)


def by_atheris(parser: Parser, seconds: float, first_seed: int) -> Report:
    """Let libFuzzer search inputs that reach new code in a parser."""
    report = Report(f"parser {parser.name} (atheris)")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        arguments = [parser.name, str(math.ceil(seconds)), str(first_seed + 1), directory]
        ended = subprocess.run(
            [sys.executable, "-m", "tools.fuzz.guided", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + _SPARE_SECONDS,
            check=False,
        )
        executed = _EXECUTED.search(ended.stderr)
        report.cases = int(executed[1]) if executed else 0
        finding = Path(directory) / "finding"
        if finding.exists():
            report.findings.append(Finding(**json.loads(finding.read_text())))
        elif ended.returncode != 0:
            inputs = [repr(file.read_bytes()) for file in Path(directory).glob("*-*")]
            report.findings.append(Finding(" ".join(inputs), ended.stderr[-4000:]))
    return report


def fuzz_parsers(seconds: float, first_seed: int) -> list[Report]:
    """Run every parser within ``seconds``, half of the time guided by coverage if possible."""
    if not has_atheris():
        print("atheris is not available: parsers are fuzzed by hypothesis only", flush=True)
        return [by_hypothesis(each, seconds / len(PARSERS), first_seed) for each in PARSERS]
    reports = [by_hypothesis(each, seconds / 4 / len(PARSERS), first_seed) for each in PARSERS]
    workers = min(os.cpu_count() or 1, len(PARSERS))
    rounds = math.ceil(len(PARSERS) / workers)
    share = seconds * 3 / 4 / rounds
    with ThreadPoolExecutor(workers) as pool:
        reports += pool.map(lambda each: by_atheris(each, share, first_seed), PARSERS)
    return reports
