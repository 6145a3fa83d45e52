"""Why did Docker bypass me: clients' configuration and the mirror, as a client meets them.

Reads files, asks the Docker daemon and the mirror; changes nothing.
"""

from mirror.doctor.examination import examine
from mirror.doctor.report import Finding, Report, Verdict

__all__ = ["Finding", "Report", "Verdict", "examine"]
