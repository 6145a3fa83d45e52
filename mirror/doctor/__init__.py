"""``mirror doctor``: finds out why a client does not pull through the mirror.

Reads the configuration of clients, asks the Docker daemon and the mirror; changes nothing.
"""

from mirror.doctor.examination import examine
from mirror.doctor.hosts import containerd_version
from mirror.doctor.report import Finding, Report, Verdict

__all__ = ["Finding", "Report", "Verdict", "containerd_version", "examine"]
