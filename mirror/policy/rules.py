"""Pins: what a tag means here, whatever upstream says."""

from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName


@dataclass(frozen=True, slots=True)
class Pin:
    """``image`` means ``digest``; ``note`` is the operator's reason."""

    image: FullName
    digest: Digest
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.image} is pinned to {self.digest} by the operator of this mirror{note}"
