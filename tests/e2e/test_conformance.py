"""The OCI distribution spec's own tests, with distribution behind the mirror."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.requirements import lacking, need
from tools.conformance.front import front
from tools.conformance.stage import Stage, staged
from tools.conformance.suite import Suite, lost

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    need("go", "docker-registry")
    try:
        return Suite(tmp_path_factory.mktemp("suite"))
    except subprocess.CalledProcessError:  # Go has said why
        lacking("the conformance suite cannot be built")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, suite: Suite) -> Iterator[Stage]:
    directory: Path = tmp_path_factory.mktemp("stage")
    with staged(directory) as stage:
        yield stage


def test_pulling_is_as_the_spec_says(suite: Suite, stage: Stage):
    verdict = suite.pull(stage.mirror.url, stage.filled())
    assert (verdict.failed, verdict.passed >= 12) == (0, True), verdict.text


def test_whatever_the_registry_passes_it_passes_through_the_mirror(suite: Suite, stage: Stage):
    """Content of every kind: indexes, artifacts, subjects, sha512, empty blobs, ranges, lists."""
    if not suite.current:
        pytest.skip("the suite that brings such content needs Go 1.24")
    direct = suite.everything(stage.registry.url, "conformance/direct")
    with front(stage.mirror.url, stage.registry.url) as url:
        through = suite.everything(url, "conformance/through")
    print(f"direct {direct.passed} passed, through the mirror {through.passed}")
    assert direct.passed > 100, direct.text
    assert not lost(direct, through), through.text
