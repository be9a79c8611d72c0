"""Traffic splitting: one name for several models by weight, to compare them on real requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from random import Random


class Splits:
    """Splits by name.

    Example: `Splits({"chat": {"old": 0.9, "new": 0.1}}).choose("chat", who="user-1")`.
    """

    def __init__(self, shares: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> None:
        self.shares = shares
        self._rng = Random(seed)

    def choose(self, name: str, *, who: str = "") -> str:
        """Choose the model for a request to a split; the name of a model is returned unchanged.

        The same user id always gets the same model.
        """
        if name not in self.shares:
            return name
        weights = self.shares[name]
        if who:  # a uniform value in [0, 1) from the digest of the user
            uniform = int.from_bytes(hashlib.sha256(f"{name}/{who}".encode()).digest()[:7], "big") / 2**56
        else:
            uniform = self._rng.random()
        rest = uniform * sum(weights.values())
        for model, weight in weights.items():
            rest -= weight
            if rest < 0:
                return model
        return list(weights)[-1]  # rounding error
