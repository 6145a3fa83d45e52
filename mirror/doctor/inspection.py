"""What one client was told: what is right and wrong in it, and what it would ask the mirror."""

from dataclasses import dataclass, field
from enum import StrEnum

from mirror.doctor.proxied import Through
from mirror.doctor.report import Finding


class Way(StrEnum):
    """How a client tells the mirror which registry it means."""

    PLAIN = "by its plain name"
    NAMESPACE = "by ns="
    PATH = "by path"


@dataclass(frozen=True, slots=True)
class Trust:
    """Which certificates a client accepts, and where it would look for one more."""

    ca_files: tuple[str, ...] = ()
    insecure: bool = False
    mend: str = "make its CA known to the system: update-ca-certificates"


@dataclass(frozen=True, slots=True)
class Walk:
    """A request that a client makes of the mirror."""

    client: str
    registry: str
    way: Way
    trust: Trust


@dataclass(slots=True)
class Inspection:
    """What one client's configuration says; ``pointed`` are the registries it gets from here.

    ``through``: it has the mirror as its proxy.
    """

    findings: list[Finding] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)
    pointed: set[str] = field(default_factory=set)
    through: Through | None = None

    def take(self, other: "Inspection") -> None:
        """Add what another inspection found."""
        self.findings += other.findings
        self.walks += other.walks
        self.pointed |= other.pointed
        self.through = self.through or other.through
