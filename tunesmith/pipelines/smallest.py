"""`tunesmith export --smallest`: the smallest GGUF file that is shown to be not worse than the tuned model by a margin.

Types per layer are searched on validation rows, in torch with rounded weights. Then the file in f16 and at most TESTED
smaller ones answer the test rows in llama.cpp, the largest first, each tested at 5 %; the first that fails ends the
tests. As the order does not depend on test rows, the chance that the chosen file is worse by the margin or more is at
most 5 % in all (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray

from tunesmith.config import load_recipe
from tunesmith.data.examples.types import LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.evaluation.predict import accepted_answers, answer, question, subsample
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.export.formats import GGUF
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
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import compare_to_margin, interval
from tunesmith.metrics.task_scores import PER_ROW, SCALES
from tunesmith.models.batch import collate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Classify, Instruct
from tunesmith.objectives.instruct import asked
from tunesmith.progress import track
from tunesmith.report.predictions import Prediction
from tunesmith.report.schema import RoundedFile, RoundedLayer, Smallest, read_report
from tunesmith.training.read import read_data

# Opens a file in llama.cpp; returns its answers to the test rows, and the tokens per second of one answer.
Ask = Callable[[Path], tuple[list[str], float]]
# Mixtures that are candidates; the types of their matrices are those of the layers of a searched file.
CANDIDATES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m")
LADDER = tuple(MIXTURES[name].matrices for name in CANDIDATES)
ALONE = Quantization.Q4_K  # of a layer that is rounded alone
TESTED = 3
VALIDATION_ROWS = 512
# Answer tokens whose distributions are compared for each layer, and tokens of their rows.
COMPARED_IDS, COMPARED_TOKENS = 256, 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """A test row as the model reads it."""

    chat: list[Message]
    ids: list[int]  # of the prompt
    longest: int  # tokens of the answer


class HeldOutRows:
    """The rows of a run that choose a file, and those that test it.

    Args:
        run: the run folder.
        margin: loss that is not accepted, in points: hundredths of the range of the metric.
        rows: the test rows with the answers of the tuned model.
        offline: do not access the network.

    Raises:
        RecipeError: the run has no answers that are scored row by row, or no validation rows.
        CheckpointError: its rows have changed.
    """

    def __init__(self, run: Path, margin: float, rows: Sequence[Prediction], *, offline: bool) -> None:
        recipe = load_recipe(run / "recipe.yaml")[0]
        if not isinstance(recipe.objective, Classify | Instruct) or recipe.objective.label_mode == "multi":
            raise RecipeError("--smallest: compares answers of one task that are scored row by row; use --dtype")
        loaded, known = read_data(recipe, offline=offline), read_report(run).data.sha256
        if changed := [part for part, digest in known.items() if loaded.sha256.get(part) != digest]:
            raise CheckpointError(
                f"{run}: its {changed[0]} rows have changed since; restore their file, or use --dtype"
            )
        if not loaded.split.validation:
            raise RecipeError("--smallest: the run has no validation rows to choose by; tune with data.validation=0.1")
        examples = {example.where: example for example in loaded.split.test}
        self.examples = [examples[row.where] for row in rows if row.where in examples]
        if [question(example) for example in self.examples] != [row.question for row in rows]:
            raise CheckpointError(f"{run}: predictions.jsonl has other rows than its test set; tune again")
        metric = recipe.objective.metric
        self.metric = metric if metric in PER_ROW else "accuracy"
        self.unscored = metric if metric != self.metric else ""  # a metric of the whole set
        self.scale = SCALES.get(self.metric, 1.0)
        self.margin = margin / 100 * self.scale
        self.validation = subsample(loaded.split.validation, VALIDATION_ROWS, 0)
        self.test, self.groups = rows, groups_of(rows)
        self.tuned = self._scores([row.tuned for row in rows])

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return PER_ROW[self.metric]([row.reference for row in self.test], texts)

    def asked(self, model: LocalModel) -> list[Asked]:
        """Return the test rows as the tuned model has read them."""
        thinking = None
        if model.objective.produces == "labels":
            chats = [model.about(example.text) for example in self.examples if isinstance(example, LabelledText)]
            reserved = max(map(len, model.label_tokens().values()))
            # A grammar may lead to other tokens than those of training, at most one per byte, and the end.
            sampling = Sampling(max_new_tokens=1 + max(len(label.encode()) for label in model.classifier.labels))
        else:
            thinking = model.thinking_mode()
            chats = [asked(example, model.wording) for example in self.examples]
            sampling = sampling_of(model.objective, thinking=thinking)
            reserved = sampling.max_new_tokens
        prompts = [model.prompt(chat, answer=reserved, thinking=thinking) for chat in chats]
        return [Asked(chat, ids, model.longest(ids, sampling)) for chat, ids in zip(chats, prompts, strict=True)]

    def on_validation(self, model: LocalModel) -> float:
        """Return the score of a model on the validation rows."""
        given = answer(model, self.validation).given
        return float(PER_ROW[self.metric](accepted_answers(self.validation), given).mean())

    def tested(self, file: RoundedFile, texts: Sequence[str], speed: float) -> RoundedFile:
        """Return a file with the test of its answers to the test rows."""
        scores = self._scores(texts)
        test = compare_to_margin(self.tuned, scores, margin=self.margin, scale=self.scale, groups=self.groups)
        found = {"score": float(scores.mean()), "ci95": interval(scores, groups=self.groups, scale=self.scale)}
        return file.model_copy(update={"tokens_per_second": speed, **found, "test": test})


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
        self.model, self.file, self.source = model, file, GgufWeights(file)
        self.network: Any = model.policy.network
        self.shapes, self.parameters = self.source.shapes, self.source.parameters(self.network)
        if unknown := sorted(self.shapes.keys() - self.parameters.keys()):
            raise RecipeError(
                f"--smallest: {unknown[0]} and {len(unknown) - 1} more of {len(self.shapes)} tensors are merged, "
                "transposed or of experts, so that their rounding cannot be measured; use --dtype"
            )
        self.importance = measure_importance(model.policy, self.parameters, rows)
        self.layers: dict[str, list[str]] = {}  # layer -> its tensors; embedding and output are layers of their own
        for tensor in self.shapes:
            found = LAYER.fullmatch(tensor)
            self.layers.setdefault(found[1] if found else tensor.removesuffix(".weight"), []).append(tensor)

    def _bytes(self, types: Types) -> int:
        return sum(stored_bytes(self.shapes[tensor], stored) for tensor, stored in types.items())

    def _stored(self, layer: str, requested: Quantization) -> Types:
        """Return the types of the tensors of a layer in one type, as far as their columns allow."""
        return {tensor: fitting(requested, self.shapes[tensor][-1]) for tensor in self.layers[layer]}

    @contextmanager
    def _rounded(self, types: Types) -> Iterator[None]:
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
    def divergences(self, rows: HeldOutRows) -> dict[str, float]:
        """Measure KL(tuned || rounded) per answer token, in nats, when only one layer is rounded to ALONE."""
        encoded, ids, tokens = [], 0, 0
        for row in self.model.encode(rows.validation):
            encoded.append(row)
            ids, tokens = ids + row.sequences[0].learned, tokens + row.length
            if ids >= COMPARED_IDS or tokens >= COMPARED_TOKENS:
                break
        policy, batch = self.model.policy, collate(encoded)

        def logs() -> torch.Tensor:  # [M, V]
            return policy.words.logits(policy.learned(batch)[:COMPARED_IDS]).float().log_softmax(dim=1)

        before, found = logs(), {}
        for layer in track(self.layers, "rounding each layer alone", unit="layers", total=len(self.layers)):
            with self._rounded(self._stored(layer, ALONE)):
                found[layer] = float((before.exp() * (before - logs())).sum(dim=1).mean())
        return found

    def candidates(self, divergences: Mapping[str, float]) -> list[Candidate]:
        """Return mixtures of llama.cpp, and for each a searched file of at most its size; the smallest first.

        The search starts with the finest type everywhere, and gives coarser ones to the layer that loses least per byte
        saved. A layer loses its measured divergence times the squared error of its types relative to those of ALONE:
        small, independent errors add up.
        """
        options = {layer: [self._stored(layer, stored) for stored in LADDER] for layer in self.layers}
        sizes = {layer: [self._bytes(types) for types in every] for layer, every in options.items()}
        losses = {}
        for layer, every in options.items():
            alone = sum(map(noise, self._stored(layer, ALONE).values())) or 1.0
            losses[layer] = [divergences[layer] * sum(map(noise, types.values())) / alone for types in every]
        steps = dict.fromkeys(self.layers, 0)
        found = [Candidate(name, self.source.types(name), name) for name in CANDIDATES]
        for limit in found[1:]:
            most = self._bytes(limit.types)
            while sum(sizes[layer][step] for layer, step in steps.items()) > most:
                moves = [
                    ((losses[layer][to] - losses[layer][step]) / (sizes[layer][step] - sizes[layer][to]), layer, to)
                    for layer, step in steps.items()
                    for to in range(step + 1, len(LADDER))
                    if sizes[layer][to] < sizes[layer][step]
                ]
                if not moves:
                    break
                _, layer, steps[layer] = min(moves)
            types = {tensor: stored for layer, step in steps.items() for tensor, stored in options[layer][step].items()}
            if self._bytes(types) <= most and all(types != other.types for other in found):
                found.append(Candidate(f"mixed {limit.name}", types, limit.name))
        return sorted(found, key=lambda candidate: self._bytes(candidate.types))

    @torch.no_grad()
    def survey(self, types: Types, divergences: Mapping[str, float], base: Any) -> list[RoundedLayer]:
        """Return for each layer its types, and how much of what tuning changed in its outputs rounding leaves visible.

        Args:
            types: of all tensors.
            divergences: of each layer, rounded alone.
            base: the network before tuning.
        """
        found = []
        for layer, tensors in track(self.layers.items(), "comparing layers", unit="layers", total=len(self.layers)):
            changed = error = 0.0
            for tensor in set(tensors) & self.importance.keys():  # mean squares of inputs make them those of outputs
                name, used = self.parameters[tensor], self.importance[tensor]
                weight, factor = self.network.get_parameter(name).float(), torch.from_numpy(used)
                changed += float(((weight - base.get_parameter(name).float()).square() * factor).sum())
                error += float(((rounded(weight, types[tensor], used) - weight).square() * factor).sum())
            own = {tensor: types[tensor] for tensor in tensors}
            found.append(
                RoundedLayer(
                    layer=layer,
                    types=tuple(sorted({stored.name.lower() for stored in own.values()})),
                    bits=8 * self._bytes(own) / sum(prod(self.shapes[tensor]) for tensor in tensors),
                    divergence=divergences[layer],
                    kept=changed / (changed + error) if changed else None,
                )
            )
        return found

    def write(self, rows: HeldOutRows, *, ask: Ask, base: Callable[[], Any]) -> Smallest:
        """Choose a file, and leave it as `model.gguf` in the folder of the one in f16.

        Args:
            rows: the rows that choose, and those that test.
            ask: answers the test rows with a file.
            base: loads the network before tuning.
        """
        divergences = self.divergences(rows)
        candidates = self.candidates(divergences)
        original = rows.on_validation(self.model)
        size = self.file.stat().st_size
        files = {"f16": RoundedFile(name="f16", bytes=size, bits=self.source.bits({}))}
        size -= self._bytes(dict.fromkeys(self.shapes, Quantization.F16))
        promising: list[Candidate] = []
        for one in track(candidates, "scoring files on validation rows", unit="files", total=len(candidates)):
            loss = None
            if len(promising) < TESTED:  # larger files are not needed
                with self._rounded(one.types):
                    loss = rows.on_validation(self.model) - original
                promising += [one] * (loss >= -rows.margin / 2)
            bits, total = self.source.bits(one.types), size + self._bytes(one.types)
            files[one.name] = RoundedFile(name=one.name, bytes=total, bits=bits, validation_delta=loss)
        out = self.file.with_name(GGUF)
        last = files["f16"] = rows.tested(files["f16"], *ask(self.file))
        chosen = None
        with self.source:
            for one in reversed(promising):
                if not last.not_worse:
                    break
                file = self.file.with_name("candidate.gguf")
                self.source.write(file, one.types, self.importance, file_type=MIXTURES[one.mixture].file_type)
                last = files[one.name] = rows.tested(files[one.name], *ask(file))
                if last.not_worse:
                    chosen = one
                    file.replace(out)
        if chosen is None:
            self.file.replace(out)
        reason = "" if chosen else "every smaller file loses more than half of the margin on the validation rows"
        return Smallest(
            metric=rows.metric,
            unscored=rows.unscored,
            margin=rows.margin,
            original=float(rows.tuned.mean()),
            rows=len(rows.test),
            validation_rows=len(rows.validation),
            chosen=chosen.name if chosen else "f16",
            reason=reason if last.not_worse else f"{last.name} is not shown to lose less than the margin",
            files=sorted(files.values(), key=lambda file: file.bytes),
            layers=self.survey(chosen.types, divergences, base()) if chosen else [],
        )


@cache
def noise(stored: Quantization) -> float:
    """Return the squared error of a type on normally distributed weights of variance 1."""
    values = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    return float(np.square(dequantize(quantize(values, stored, np.ones(1024, np.float32)), stored) - values).mean())
