"""Rounds, medians, ratios, and gates."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from tools.bench.load import Sample

MIRROR, P1, P2, P3, DIRECT = "mirror", "P1", "P2", "P3", "direct"


def quiet(server: str) -> str:
    """The name of the same server without an access log."""
    return f"{server}, no log"


class NotAvailableError(Exception):
    """A row that cannot be measured on this machine; the message is the reason."""


@dataclass(frozen=True)
class Measured:
    """Samples of each server, one per round."""

    samples: Mapping[str, list[Sample]]

    def median(self, server: str, figure: str) -> float:
        return median(sample[figure] for sample in self.samples[server])

    def ratio(self, figure: str, server: str, other: str) -> float:
        """The median of the ratios of all rounds: effects on a whole round cancel out."""
        pairs = zip(self.samples[server], self.samples[other], strict=False)
        return median(one[figure] / two[figure] for one, two in pairs)

    def shown(self, figure: str, form: str = "{:.2f}") -> dict[str, str]:
        """Median, minimum and maximum for each server that has the figure."""
        return {
            server: self._shown(server, figure, form)
            for server, found in self.samples.items()
            if figure in found[0]
        }

    def _shown(self, server: str, figure: str, form: str) -> str:
        found = [sample[figure] for sample in self.samples[server]]
        text = form.format(median(found))
        if len(found) > 1:
            text += f" ({form.format(min(found))}-{form.format(max(found))})"
        return text


def interleaved(
    rounds: int, contestants: Mapping[str, Callable[[], Sample]], fewer: Mapping[str, int] = {}
) -> Measured:
    """Measure every server once in every round, in random order.

    Servers in ``fewer`` have a limited number of rounds: their figures are only for comparison.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    order = list(contestants)
    for at in range(rounds):
        random.shuffle(order)
        for name in order:
            if at < fewer.get(name, rounds):
                samples[name].append(contestants[name]())
    return Measured(samples)


@dataclass(frozen=True)
class Gate:
    """A gate: the condition for a figure, and its value."""

    asked: str
    got: str
    met: bool


def at_least(what: str, limit: float, got: float, unit: str = "x") -> Gate:
    """Gate: ``what`` has to be ``limit`` or more."""
    return Gate(f"{what} >= {limit:g} {unit}", f"{got:.3g} {unit}", got >= limit)


def at_most(what: str, limit: float, got: float, unit: str = "x") -> Gate:
    """Gate: ``what`` has to be ``limit`` or less."""
    return Gate(f"{what} <= {limit:g} {unit}", f"{got:.3g} {unit}", got <= limit)


@dataclass
class Result:
    """The result of a row: figures by name and server, and gates."""

    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
