"""What an examination found, as values and as lines for people."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``where`` is a file, a daemon or an address."""

    verdict: Verdict
    where: str
    what: str
    mend: str = ""

    def lines(self) -> list[str]:
        """For people; how to mend it stands on a line of its own."""
        first = f"{self.verdict:<5}  {self.where}: {self.what}"
        return [first, f"       mend: {self.mend}"] if self.mend else [first]


def ok(where: str, what: str) -> Finding:
    """Something is as it must be."""
    return Finding(Verdict.OK, where, what)


def note(where: str, what: str, mend: str = "") -> Finding:
    """Something is good to know and keeps nobody from the mirror."""
    return Finding(Verdict.NOTE, where, what, mend)


def wrong(where: str, what: str, mend: str) -> Finding:
    """Something makes a client bypass the mirror, or fail there."""
    return Finding(Verdict.WRONG, where, what, mend)


def is_wrong(finding: Finding) -> bool:
    """Whether a finding keeps a client from the mirror."""
    return finding.verdict is Verdict.WRONG


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found about one mirror."""

    url: str
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(map(is_wrong, self.findings))

    def lines(self) -> list[str]:
        """All of it, for people; what several clients share is said once."""
        findings = dict.fromkeys(self.findings)
        number = sum(map(is_wrong, findings))
        summary = f"{number} wrong" if number else "nothing is wrong"
        said = [line for finding in findings for line in finding.lines()]
        return [*said, f"the mirror {self.url}: {summary}"]
