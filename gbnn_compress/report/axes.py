"""Axes of a figure: from values to positions, and round values for the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Smallest value.
        high: Largest value.
        start: Position of `low` in the figure.
        stop: Position of `high` in the figure.
        logarithmic: Whether the axis is logarithmic; its values are then positive.
    """

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The position of a value, rounded to a tenth; values beyond the axis are clipped to its ends."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        fraction = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + fraction * (self.stop - self.start), 1)

    def ticks(self, *, at_most: int = 6, suffix: str = "") -> list[tuple[float, str]]:
        """Positions and labels of at most `at_most` round values."""
        values = _round_factors(self.low, self.high, at_most) if self.logarithmic else []
        values = values if len(values) > 1 else _round_steps(self.low, self.high, at_most)
        return [(self.at(value), f"{value:,g}{suffix}".replace("-", "−")) for value in values]


def _round_steps(low: float, high: float, at_most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10((high - low) / at_most)) if high > low else 1.0
    choices = (_multiples(low, high, unit * factor) for factor in (1, 2, 5, 10, 20))
    return next(values for values in choices if len(values) <= at_most)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{count * step:.6g}") for count in range(first, last + 1)]


def _round_factors(low: float, high: float, at_most: int) -> list[float]:
    """1, 2 and 5 times powers of ten; if these are too many, the powers alone, then every second power, and so on."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[10.0**power * digit for power in powers for digit in (1, 2, 5)]]
    choices += [[10.0**power for power in powers if power % every == 0] for every in range(1, len(powers) + 1)]
    inside = [[value for value in values if low <= value * (1 + 1e-9) <= high * (1 + 2e-9)] for values in choices]
    return next((values for values in inside if len(values) <= at_most), inside[-1])
