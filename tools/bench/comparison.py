"""Rounds, medians, ratios, and what they are held against."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from tools.bench.load import Sample

MIRROR, P1, P2, P3, DIRECT = "mirror", "P1", "P2", "P3", "direct"


class NotAvailableError(Exception):
    """A row that cannot be had here; the message says why."""


@dataclass(frozen=True)
class Measured:
    """The samples of each server, one per round."""

    samples: Mapping[str, list[Sample]]

    def median(self, server: str, figure: str) -> float:
        return median(sample[figure] for sample in self.samples[server])

    def ratio(self, figure: str, server: str, other: str) -> float:
        """The median of the rounds' ratios: what slows a whole round down cancels out."""
        pairs = zip(self.samples[server], self.samples[other], strict=False)
        return median(one[figure] / two[figure] for one, two in pairs)

    def shown(self, figure: str, form: str = "{:.2f}") -> dict[str, str]:
        """Median, least and most of each server that has the figure."""
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
    """Let everybody have a turn in every round, in an order that is drawn anew.

    ``fewer`` names those whose figure is there for comparison only, with rounds of their own.
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
class RateLimitPause:
    """What is asked of a figure, what it came to."""

    asked: str
    got: str
    met: bool


def at_least(what: str, limit: float, got: float, unit: str = "x") -> RateLimitPause:
    """``what`` has to be ``limit`` or more."""
    return RateLimitPause(f"{what} >= {limit:g} {unit}", f"{got:.3g} {unit}", got >= limit)


def at_most(what: str, limit: float, got: float, unit: str = "x") -> RateLimitPause:
    """``what`` has to be ``limit`` or less."""
    return RateLimitPause(f"{what} <= {limit:g} {unit}", f"{got:.3g} {unit}", got <= limit)


@dataclass
class Result:
    """What a row came to: figures by their names and servers, and gates."""

    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: list[RateLimitPause] = field(default_factory=list)
