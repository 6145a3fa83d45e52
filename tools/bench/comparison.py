"""Rounds, medians, ratios, and gates."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from statistics import median

from tools.bench.load import Sample

MIRROR, P1, P2, P3, P4, DIRECT = "mirror", "P1", "P2", "P3", "P4", "direct"


def quiet(server: str) -> str:
    """The name of the same server without an access log."""
    return f"{server}, no log"


def plain(server: str) -> str:
    """The name of the same server without TLS."""
    return f"{server}, no TLS"


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
        return median(self.ratios(figure, server, other))

    def shown(self, figure: str, form: str = "{:.2f}") -> dict[str, str]:
        """Median, minimum and maximum for each server that has the figure."""
        return {
            server: _shown([sample[figure] for sample in found], form)
            for server, found in self.samples.items()
            if figure in found[0]
        }

    def shown_ratio(self, figure: str, server: str, other: str) -> str:
        """Median, minimum and maximum of the ratios of all rounds."""
        return _shown(self.ratios(figure, server, other), "{:.2f}")

    def ratios(self, figure: str, server: str, other: str) -> list[float]:
        """The ratio of each round."""
        pairs = zip(self.samples[server], self.samples[other], strict=False)
        return [one[figure] / two[figure] for one, two in pairs]


def _shown(found: list[float], form: str) -> str:
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
    """A gate: the condition for a figure, and its value; ``met`` is None if noise hides it."""

    asked: str
    got: str
    met: bool | None


def at_least(what: str, limit: float, got: float, unit: str = "x") -> Gate:
    """Gate: ``what`` has to be ``limit`` or more."""
    return Gate(f"{what} >= {limit:g} {unit}", f"{got:.3g} {unit}", got >= limit)


def at_most(what: str, limit: float, got: float, unit: str = "x") -> Gate:
    """Gate: ``what`` has to be ``limit`` or less."""
    return Gate(f"{what} <= {limit:g} {unit}", f"{got:.3g} {unit}", got <= limit)


def surely_at_most(what: str, limit: float, ratios: list[float]) -> Gate:
    """Gate: the median of ``ratios`` has to be ``limit`` or less, by more than their noise.

    The noise is the 95 % confidence interval of the median, from the order of the ratios.
    """
    found = sorted(ratios)
    outside = max(0, int((len(found) - 1.96 * sqrt(len(found))) / 2))
    low, high = found[outside], found[-1 - outside]
    got = f"{median(found):.3f} x (95 %: {low:.3f}-{high:.3f})"
    return Gate(f"{what} <= {limit:g} x", got, None if low <= limit < high else high <= limit)


@dataclass
class Result:
    """The result of a row: figures by name and server, and gates."""

    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
