"""The search for the types of the layers of a GGUF file, in torch with rounded weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize

from tunesmith.data.examples.types import Example
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import RecipeError
from tunesmith.inference.export.gguf_quantize import (
    LAYER,
    MIXTURES,
    GgufWeights,
    Quantization,
    Types,
    fitting,
    measure_importance,
    quantize,
    rounded,
    stored_bytes,
)
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.batch import collate
from tunesmith.progress import track
from tunesmith.report.schema import RoundedFile, RoundedLayer

# Mixtures that are candidates; the types of their matrices are those of the layers of a searched file.
CANDIDATES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m")
LAYER_TYPES = tuple(MIXTURES[name].matrices for name in CANDIDATES)
TRIAL_TYPE = Quantization.Q4_K  # of a layer that is rounded alone
# Answer tokens whose distributions are compared for each layer, and tokens of their rows.
COMPARED_IDS = 256
COMPARED_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could be written."""

    name: str
    types: Types
    mixture: str  # whose file type it states


class Search:
    """Searches the types of the layers of a file.

    Args:
        model: the merged model, in float32.
        file: its GGUF file in f16.
        rows: training rows, which measure the importance of columns.

    Raises:
        RecipeError: the file has weights whose rounding cannot be measured in the network.
    """

    def __init__(self, model: LocalModel, file: Path, rows: Sequence[Encoded]) -> None:
        self.model = model
        self.source = GgufWeights(file)
        self.network: Any = model.policy.network
        self.shapes = self.source.shapes
        self.parameters = self.source.parameters(self.network)
        size = sum(stored_bytes(shape, Quantization.F16) for shape in self.shapes.values())
        self._other_bytes = file.stat().st_size - size  # of what is not quantized
        if unknown := sorted(self.shapes.keys() - self.parameters.keys()):
            raise RecipeError(
                f"--smallest: {unknown[0]} and {len(unknown) - 1} more of {len(self.shapes)} tensors are merged, "
                "transposed or of experts, so that their rounding cannot be measured; use --dtype"
            )
        self.importance = measure_importance(model.policy, self.parameters, rows)
        self.layers: dict[str, list[str]] = {}  # layer -> its tensors; embedding and output are layers of their own
        named = {tensor: LAYER.fullmatch(tensor) for tensor in self.shapes}
        # The file has layer 10 before layer 2.
        for tensor, place in sorted(named.items(), key=lambda item: int(item[1][1]) if item[1] else -1):
            self.layers.setdefault(place[1] if place else tensor.removesuffix(".weight"), []).append(tensor)

    def _bytes(self, types: Types) -> int:
        return sum(stored_bytes(self.shapes[tensor], stored) for tensor, stored in types.items())

    def _stored(self, layer: str, requested: Quantization) -> Types:
        """Return the types of the tensors of a layer in one type, as far as their columns allow."""
        return {tensor: fitting(requested, self.shapes[tensor][-1]) for tensor in self.layers[layer]}

    def described(self, candidate: Candidate, delta: float | None) -> RoundedFile:
        """Return the size of a file, and how much it changes the score on validation rows."""
        return RoundedFile(
            name=candidate.name,
            bytes=self._other_bytes + self._bytes(candidate.types),
            bits=self.source.bits(candidate.types),
            validation_delta=delta,
        )

    def write(self, candidate: Candidate, file: Path) -> None:
        """Write a file."""
        file_type = MIXTURES[candidate.mixture].file_type
        self.source.write(file, candidate.types, self.importance, file_type=file_type)

    @contextmanager
    def rounded(self, types: Types) -> Iterator[None]:
        """Enter a context in which the network has the values of a file with these types."""
        weights = {tensor: self.network.get_parameter(self.parameters[tensor]) for tensor in types}
        own = {tensor: weight.data for tensor, weight in weights.items()}
        try:
            for tensor, weight in weights.items():
                weight.data = rounded(weight.data, types[tensor], self.importance.get(tensor)).to(weight)
            yield
        finally:
            for tensor, weight in weights.items():
                weight.data = own[tensor]

    @torch.no_grad()
    def divergences(self, rows: Sequence[Example]) -> dict[str, float]:
        """Measure KL(tuned || rounded) per answer token, in nats, when only one layer is rounded to TRIAL_TYPE."""
        encoded = []
        ids = tokens = 0
        for row in self.model.encode(rows):
            encoded.append(row)
            ids += row.sequences[0].learned
            tokens += row.length
            if ids >= COMPARED_IDS or tokens >= COMPARED_TOKENS:
                break
        policy = self.model.policy
        batch = collate(encoded)

        def log_probabilities() -> torch.Tensor:  # [M, V]
            return policy.words.logits(policy.learned(batch)[:COMPARED_IDS]).float().log_softmax(dim=1)

        exact = log_probabilities()
        divergences = {}
        for layer in track(self.layers, "rounding each layer alone", unit="layers", total=len(self.layers)):
            with self.rounded(self._stored(layer, TRIAL_TYPE)):
                divergences[layer] = float((exact.exp() * (exact - log_probabilities())).sum(dim=1).mean())
        return divergences

    def candidates(self, divergences: Mapping[str, float]) -> list[Candidate]:
        """Return mixtures of llama.cpp, and for each a searched file of at most its size; the smallest first.

        The search starts with the finest type everywhere, and gives coarser ones to the layer that loses least per byte
        saved. A layer loses its measured divergence times the squared error of its types, relative to those of
        TRIAL_TYPE: small, independent errors add up.
        """
        options = {layer: [self._stored(layer, stored) for stored in LAYER_TYPES] for layer in self.layers}
        sizes = {layer: [self._bytes(types) for types in choices] for layer, choices in options.items()}
        losses = {}
        for layer, choices in options.items():
            trial = sum(map(noise, self._stored(layer, TRIAL_TYPE).values())) or 1.0
            losses[layer] = [divergences[layer] * sum(map(noise, types.values())) / trial for types in choices]
        steps = dict.fromkeys(self.layers, 0)
        candidates = [
            Candidate(name, self.source.types(name, importance=bool(self.importance)), name) for name in CANDIDATES
        ]
        for limit in candidates[1:]:
            most = self._bytes(limit.types)
            while sum(sizes[layer][step] for layer, step in steps.items()) > most:
                moves = [
                    ((losses[layer][to] - losses[layer][step]) / (sizes[layer][step] - sizes[layer][to]), layer, to)
                    for layer, step in steps.items()
                    for to in range(step + 1, len(LAYER_TYPES))
                    if sizes[layer][to] < sizes[layer][step]
                ]
                if not moves:
                    break
                _, layer, steps[layer] = min(moves)
            types = {tensor: stored for layer, step in steps.items() for tensor, stored in options[layer][step].items()}
            if self._bytes(types) <= most and all(types != other.types for other in candidates):
                candidates.append(Candidate(f"mixed {limit.name}", types, limit.name))
        return sorted(candidates, key=lambda candidate: self._bytes(candidate.types))

    @torch.no_grad()
    def survey(self, types: Types, divergences: Mapping[str, float], base: Any) -> list[RoundedLayer]:
        """Return for each layer its types, and how much of what tuning changed in its outputs rounding leaves visible.

        Args:
            types: of all tensors.
            divergences: of each layer, rounded alone.
            base: the network before tuning.
        """
        survey = []
        for layer, tensors in track(self.layers.items(), "comparing layers", unit="layers", total=len(self.layers)):
            changed = error = 0.0
            for tensor in set(tensors) & self.importance.keys():  # mean squares of inputs make them those of outputs
                name = self.parameters[tensor]
                importance = self.importance[tensor]
                factor = torch.from_numpy(importance)
                weight = self.network.get_parameter(name).float()
                changed += float(((weight - base.get_parameter(name).float()).square() * factor).sum())
                error += float(((rounded(weight, types[tensor], importance) - weight).square() * factor).sum())
            own = {tensor: types[tensor] for tensor in tensors}
            survey.append(
                RoundedLayer(
                    layer=layer,
                    types=tuple(sorted({stored.name.lower() for stored in own.values()})),
                    bits=8 * self._bytes(own) / sum(prod(self.shapes[tensor]) for tensor in tensors),
                    divergence=divergences[layer],
                    kept=changed / (changed + error) if changed else None,
                )
            )
        return survey


@cache
def noise(stored: Quantization) -> float:
    """Return the squared error of a type on normally distributed weights of variance 1."""
    values = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    return float(np.square(dequantize(quantize(values, stored, np.ones(1024, np.float32)), stored) - values).mean())
