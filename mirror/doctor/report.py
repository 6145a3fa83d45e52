"""The results of an examination: findings, and the requests that the clients would send."""

from dataclasses import dataclass, field
from enum import StrEnum

from mirror.config.fields import masked


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


class Way(StrEnum):
    """How a client names the registry in a request to the mirror."""

    PLAIN = "by its plain name"
    NAMESPACE = "by ns="
    PATH = "by path"


@dataclass(frozen=True, slots=True)
class Trust:
    """The CAs that a client trusts, and how to add one (``fix``)."""

    ca_files: tuple[str, ...] = ()
    insecure: bool = False
    fix: str = "make its CA known to the system: update-ca-certificates"


@dataclass(frozen=True, slots=True)
class Probe:
    """A request that a client would send to the mirror."""

    client: str
    registry: str
    way: Way
    trust: Trust


@dataclass(frozen=True, slots=True)
class Through:
    """A proxy of Docker, and the file with the CAs that it trusts (empty: the system's)."""

    proxy: str
    ca_file: str

    @property
    def where(self) -> str:
        """The name of the proxy in findings, without a password."""
        return f"Docker through the proxy {masked(self.proxy)}"


@dataclass(slots=True)
class Inspection:
    """The findings for a client; ``pointed`` are the registries that it pulls from the mirror.

    ``through``: the mirror as the proxy of the client, None if it is not.
    """

    findings: list[Finding] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    pointed: set[str] = field(default_factory=set)
    through: Through | None = None

    def take(self, other: "Inspection") -> None:
        self.findings += other.findings
        self.probes += other.probes
        self.pointed |= other.pointed
        self.through = self.through or other.through
