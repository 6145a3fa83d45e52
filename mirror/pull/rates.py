"""The rates of downloads, for the status page; sampled about once a second."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.pull.fill import Fill
from mirror.stats.report import Filling

#: The weight of the last sample: the rate is steady enough to read, and current within seconds.
_WEIGHT: Final = 0.4


@dataclass(frozen=True, slots=True)
class _Look:
    length: int
    at: float
    rate: float | None


class DownloadRates:
    """Computes the rate of each download from its last sample."""

    def __init__(self) -> None:
        self._looks: dict[Digest, _Look] = {}

    def fillings(self, fills: Iterable[Fill], now: float) -> list[Filling]:
        """Return each download's state at ``now`` (monotonic seconds); new ones have rate 0."""
        fillings, looks = [], {}
        for fill in fills:
            reader = fill.reader
            look = looks[fill.digest] = self._look(fill.digest, reader.length, now)
            registry, repository = fill.source.registry.name, fill.source.repository
            fillings.append(
                Filling(
                    *(str(fill.digest), registry, repository, reader.length, reader.total),
                    look.rate or 0.0,
                    fill.waiting,
                )
            )
        self._looks = looks
        return fillings

    def _look(self, digest: Digest, length: int, now: float) -> _Look:
        before = self._looks.get(digest)
        if before is None or now <= before.at:
            return _Look(length, now, None)
        rate = max(length - before.length, 0) / (now - before.at)
        if before.rate is not None:
            rate = _WEIGHT * rate + (1 - _WEIGHT) * before.rate
        return _Look(length, now, rate)
