"""One name that stands for several models by weight, so that two can be compared on real questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from random import Random


class Splits:
    """Names and what they stand for; a name that is no split stands for itself."""

    def __init__(self, shares: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> None:
        self.shares, self._chance = shares, Random(seed)

    def choose(self, name: str, *, who: str = "") -> str:
        """The model that answers; the same one every time to the same person, where a person is named."""
        if name not in self.shares:
            return name
        weights = self.shares[name]
        place = _place(f"{name}/{who}") if who else self._chance.random()
        left = place * sum(weights.values())
        for model, weight in weights.items():
            left -= weight
            if left < 0:
                return model
        return list(weights)[-1]  # rounding left a crumb


def _place(text: str) -> float:
    """A number from 0 to 1 that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
