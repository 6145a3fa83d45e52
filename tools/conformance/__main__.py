"""`make conformance`: runs the spec's tests against the mirror, and the registry behind it."""

import shutil
import sys
import tempfile
from pathlib import Path

from tools.conformance.front import front
from tools.conformance.stage import staged
from tools.conformance.suite import Suite, Verdict, lost


def main() -> int:
    """Run the suite that the installed Go can build; returns 1 if a test fails."""
    missing = [program for program in ("go", "docker-registry") if shutil.which(program) is None]
    if missing:
        print(f"conformance: needs {', '.join(missing)} (Debian: golang-go, docker-registry)")
        return 2
    with tempfile.TemporaryDirectory() as directory, staged(Path(directory)) as stage:
        suite = Suite(Path(directory))
        pull = suite.pull(stage.mirror.url, stage.filled())
        _tell("pull, read-only", pull)
        failed = bool(pull.failed) or not pull.passed
        if suite.current:
            direct = suite.everything(stage.registry.url, "conformance/direct")
            _tell("everything, distribution itself", direct)
            with front(stage.mirror.url, stage.registry.url) as url:
                through = suite.everything(url, "conformance/through")
            _tell("everything, read through the mirror", through)
            for name in lost(direct, through):
                print(f"  no longer passes: {name}")
            failed = failed or bool(lost(direct, through))
    return 1 if failed else 0


def _tell(what: str, verdict: Verdict) -> None:
    print(f"{what}: {verdict.passed} passed, {verdict.failed} failed")


if __name__ == "__main__":
    sys.exit(main())
