"""The findings of an examination, as values and as lines for people."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``where`` is a file, a daemon or an address."""

    verdict: Verdict
    where: str
    what: str
    fix: str = ""

    def lines(self) -> list[str]:
        """Return the lines for people; ``fix`` is on a separate line."""
        first = f"{self.verdict:<5}  {self.where}: {self.what}"
        return [first, f"       fix: {self.fix}"] if self.fix else [first]


def ok(where: str, what: str) -> Finding:
    """Return a finding that is correct."""
    return Finding(Verdict.OK, where, what)


def note(where: str, what: str, fix: str = "") -> Finding:
    """Return a finding that is informational: clients still use the mirror."""
    return Finding(Verdict.NOTE, where, what, fix)


def wrong(where: str, what: str, fix: str) -> Finding:
    """Return a finding that makes a client bypass the mirror, or fail there."""
    return Finding(Verdict.WRONG, where, what, fix)


def is_wrong(finding: Finding) -> bool:
    """Whether a finding makes a client bypass the mirror, or fail there."""
    return finding.verdict is Verdict.WRONG


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one mirror, or about the ``kind`` of thing that ``url`` names."""

    url: str
    findings: tuple[Finding, ...]
    kind: str = "mirror"

    @property
    def healthy(self) -> bool:
        """Whether no finding is ``wrong``."""
        return not any(map(is_wrong, self.findings))

    def lines(self) -> list[str]:
        """Return all lines for people; equal findings of several clients appear once."""
        findings = dict.fromkeys(self.findings)
        number = sum(map(is_wrong, findings))
        summary = f"{number} wrong" if number else "nothing is wrong"
        said = [line for finding in findings for line in finding.lines()]
        return [*said, f"the {self.kind} {self.url}: {summary}"]
