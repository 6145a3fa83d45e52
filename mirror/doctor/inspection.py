"""The result of inspecting one client: findings, and the requests that it would send."""

from dataclasses import dataclass, field
from enum import StrEnum

from mirror.doctor.proxied import Through
from mirror.doctor.report import Finding


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
        """Add the results of another inspection."""
        self.findings += other.findings
        self.probes += other.probes
        self.pointed |= other.pointed
        self.through = self.through or other.through
