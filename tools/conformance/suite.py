"""Builds and runs the conformance tests with the installed Go.

The current suite needs Go 1.24; Go of Debian 12 builds the suite of version 1.1.0.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_PACKAGE: Final = "github.com/opencontainers/distribution-spec/conformance"
_CURRENT_NEEDS: Final = (1, 24)
_VERSION: Final = re.compile(r"go(\d+(?:\.\d+)+)")
_RESULT: Final = re.compile(r"\s*OCI Conformance Test/(.+): (Pass|FAIL|Skip|Disabled|Error)")
_READS: Final = re.compile(
    r"/(pull|head|tag-list|referrers|range requests)(/|$)|(blob|manifest)-(get|head)$"
)
_COUNTS: Final = re.compile(r"(\d+) Passed.*?(\d+) Failed")
_COLOURS: Final = re.compile("\x1b\\[[0-9;]*m")


@dataclass(frozen=True)
class Content:
    """The content of a read-only registry for the tests, and its repository."""

    repository: str
    tag: str
    manifest: str
    blobs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Numbers of passed and failed tests; only the current suite gives the names of all."""

    passed: int
    failed: int
    statuses: Mapping[str, str]
    text: str


class Suite:
    """The newest suite that the installed Go can build."""

    def __init__(self, directory: Path) -> None:
        """Build it below ``directory``; Go's environment decides the source of modules."""
        self.directory = directory
        self.current = go_version() >= _CURRENT_NEEDS
        self._program = directory / "conformance"
        build = ["build"] if self.current else ["test", "-mod=mod", "-c"]
        subprocess.run(
            ["go", *build, "-o", str(self._program), _PACKAGE],
            cwd=_HERE / ("current" if self.current else "legacy"),
            check=True,
            timeout=900,
        )

    def pull(self, url: str, content: Content) -> Verdict:
        """Run the pull tests against a registry with this content."""
        if not self.current:
            return self._run(
                {
                    "OCI_ROOT_URL": url,
                    "OCI_NAMESPACE": content.repository,
                    "OCI_TEST_PULL": "1",
                    "OCI_TAG_NAME": content.tag,
                    "OCI_MANIFEST_DIGEST": content.manifest,
                    "OCI_BLOB_DIGEST": content.blobs[0],
                }
            )
        off = ("PUSH", "BLOBS_DELETE", "MANIFESTS_DELETE", "TAGS_DELETE", "REFERRER")
        return self._run(
            {
                **_reached(url, content.repository),
                **{f"OCI_API_{name}": "false" for name in off},
                "OCI_RO_DATA_TAGS": content.tag,
                "OCI_RO_DATA_MANIFESTS": content.manifest,
                "OCI_RO_DATA_BLOBS": " ".join(content.blobs),
            }
        )

    def everything(self, url: str, repository: str) -> Verdict:
        """Run all tests, with all kinds of content; only in the current suite."""
        return self._run(_reached(url, repository))

    def _run(self, settings: Mapping[str, str]) -> Verdict:
        reports = {"OCI_RESULTS_DIR": str(self.directory), "OCI_REPORT_DIR": str(self.directory)}
        done = subprocess.run(
            [str(self._program)],
            env={**os.environ, **settings, **reports},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        return _verdict(_COLOURS.sub("", done.stdout + done.stderr))


def lost(direct: Verdict, through: Verdict) -> list[str]:
    """Reads that pass at the registry, and fail through the mirror."""
    return [
        name
        for name, status in direct.statuses.items()
        if status == "Pass" and through.statuses.get(name) != "Pass" and _READS.search(name)
    ]


def _reached(url: str, repository: str) -> dict[str, str]:
    return {
        "OCI_REGISTRY": url.partition("://")[2],
        "OCI_TLS": "disabled",
        "OCI_VERSION": "1.1",
        "OCI_REPO1": f"{repository}",
        "OCI_REPO2": f"{repository}-two",
    }


def _verdict(text: str) -> Verdict:
    """Parse the report, since the exit code of the current suite is wrong for read-only runs."""
    counts = _COUNTS.search(text)
    if counts is not None:
        return Verdict(int(counts[1]), int(counts[2]), {}, text)
    matches = (_RESULT.fullmatch(line) for line in text.splitlines())
    statuses = {found[1]: found[2] for found in matches if found}
    found = list(statuses.values())
    return Verdict(found.count("Pass"), found.count("FAIL") + found.count("Error"), statuses, text)


def go_version() -> tuple[int, ...]:
    """Return the version of the installed Go, as ``(1, 26, 8)``."""
    printed = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    found = _VERSION.search(printed)
    assert found is not None, printed
    return tuple(map(int, found[1].split(".")))
