"""`tunesmith export --smallest`: the smallest GGUF file that is shown to be not worse than the tuned model by a margin.

Types per layer are searched on validation rows, in torch with rounded weights. Then the file in f16 and at most TESTED
smaller ones answer the test rows in llama.cpp, the largest first, each tested at 5 %; the first that fails ends the
tests. As the order does not depend on test rows, the chance that the chosen file is worse by the margin or more is at
most 5 % in all (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import load_recipe
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.files import writing
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.evaluation.predict import accepted_answers, answer, question, subsample
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.export.formats import GGUF, plain_base, write_file
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import compare_to_margin, interval, smallest_margin
from tunesmith.metrics.task_scores import PER_ROW, SCALES
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.objectives.instruct import asked
from tunesmith.pipelines.export.compare import MIN_ANSWER_TOKENS, llama_cpp, thinking_of
from tunesmith.pipelines.export.search import Candidate, Search
from tunesmith.progress import track
from tunesmith.report.predictions import Prediction
from tunesmith.report.schema import RoundedFile, Smallest, read_report
from tunesmith.training.read import read_data

# Opens a file in llama.cpp; returns its answers to the examples, and the tokens per second of one answer.
Ask = Callable[[Path], tuple[list[str], float]]
TESTED = 3
VALIDATION_ROWS = 512


@dataclass(frozen=True, slots=True)
class Asked:
    """An example as the model reads it."""

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
        if not recipe.objective.has_reference_answers or recipe.objective.label_mode == "multi":
            raise RecipeError("--smallest: compares answers of one task that are scored row by row; use --dtype")
        loaded = read_data(recipe, offline=offline)
        known = read_report(run).data.sha256
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
        self.test = rows
        self.groups = groups_of(rows)
        self.tuned = self._scores([row.tuned for row in rows])

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return PER_ROW[self.metric]([row.reference for row in self.test], texts)

    def refuse_if_nothing_can_be_shown(self) -> None:
        """Refuse a margin that these rows could not show for a file with equal answers, before the search.

        Raises:
            RecipeError: the test rows are too few, or too many of them are in one group.
        """
        least = smallest_margin(len(self.test), scale=self.scale, groups=self.groups)
        if least < self.margin:
            return
        rows = f"{len(self.test)} test rows"
        if self.groups:
            sizes = Counter(self.groups).values()
            rows += f" in {len(sizes)} groups (up to {max(sizes)} rows)"
        possible = math.floor(1000 * least / self.scale + 1) / 10  # in points, rounded up
        raise RecipeError(
            f"--margin {100 * self.margin / self.scale:g}: {rows} cannot show it, even for a file with equal answers; "
            f"use --margin {possible:g} or more, tune with more test rows, or use --dtype"
        )

    def on_validation(self, model: LocalModel) -> float:
        """Return the score of a model on the validation rows."""
        given = answer(model, self.validation).given
        return float(PER_ROW[self.metric](accepted_answers(self.validation), given).mean())

    def tested(self, file: RoundedFile, texts: Sequence[str], speed: float) -> RoundedFile:
        """Return a file with the test of its answers to the test rows."""
        scores = self._scores(texts)
        test = compare_to_margin(self.tuned, scores, margin=self.margin, scale=self.scale, groups=self.groups)
        bounds = interval(scores, groups=self.groups, scale=self.scale)
        measured = {"tokens_per_second": speed, "score": float(scores.mean()), "ci95": bounds, "test": test}
        return file.model_copy(update=measured)


def write_smallest(
    model: LocalModel, folder: Path, out: Path, rows: HeldOutRows, *, importance_rows: Sequence[Encoded], offline: bool
) -> Smallest:
    """Write an export with the smallest file that is shown to be not worse by the margin, or the one in f16.

    Args:
        model: the merged model, in float32.
        folder: the model folder of the run.
        out: folder of the export.
        rows: the rows that choose, and those that test.
        importance_rows: training rows, which measure the importance of columns.
        offline: do not access the network.

    Raises:
        RecipeError: the file has weights whose rounding cannot be measured in the network.
    """
    ask = asker(model, rows.examples)
    with writing(out), _workplace(out) as made:
        write_file(model, made, dtype="f16", name=folder.parent.name)
        exact = (made / GGUF).rename(made / "f16.gguf")
        search = Search(model, exact, importance_rows)
        divergences = search.divergences(rows.validation)
        candidates = search.candidates(divergences)
        deltas = _validation_deltas(search, candidates, rows)
        files = {one.name: search.described(one, deltas.get(one.name)) for one in candidates}
        files["f16"] = RoundedFile(name="f16", bytes=exact.stat().st_size, bits=search.source.bits({}))
        promising = [one for one in candidates if deltas.get(one.name, -math.inf) >= -rows.margin / 2]
        chosen = None
        with search.source:
            last = files["f16"] = rows.tested(files["f16"], *ask(exact))
            for candidate in reversed(promising):
                if not last.not_worse:
                    break
                file = made / "candidate.gguf"
                search.write(candidate, file)
                last = files[candidate.name] = rows.tested(files[candidate.name], *ask(file))
                if last.not_worse:
                    chosen = candidate
                    file.replace(made / GGUF)
        layers = []
        if chosen is None:
            exact.replace(made / GGUF)
        else:
            base = plain_base(read_manifest(folder), offline=offline).network
            layers = search.survey(chosen.types, divergences, base)

        def fill(half: Path) -> None:
            for name in (GGUF, "Modelfile"):
                try:
                    os.link(made / name, half / name)
                except OSError:  # another disk, or a file system without links
                    shutil.copy2(made / name, half / name)

        write_folder(out, fill)
    reason = "" if chosen else "every smaller file loses more than half of the margin on the validation rows"
    if not last.not_worse:
        reason = f"{last.name} is not shown to lose less than the margin"
    return Smallest(
        metric=rows.metric,
        unscored=rows.unscored,
        margin=rows.margin,
        original=float(rows.tuned.mean()),
        rows=len(rows.test),
        validation_rows=len(rows.validation),
        chosen=chosen.name if chosen else "f16",
        reason=reason,
        files=sorted(files.values(), key=lambda file: file.bytes),
        layers=layers,
    )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """Enter a context with an empty folder next to `out`, always of the same name: a start deletes what a kill left."""
    place = out.with_name(f".{out.name}.smallest.half")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def prompts_of(model: LocalModel, examples: Sequence[Example]) -> list[Asked]:
    """Return examples as a tuned model reads them when it answers."""
    thinking = None
    if model.objective.produces == "labels":
        chats = [model.about(example.text) for example in examples if isinstance(example, LabelledText)]
        reserved = max(map(len, model.label_tokens().values()))
        # A grammar may lead to other tokens than those of training, at most one per byte, and the end.
        sampling = Sampling(max_new_tokens=1 + max(len(label.encode()) for label in model.classifier.known_labels))
    else:
        thinking = model.thinking_mode()
        chats = [asked(example, model.wording) for example in examples]
        sampling = sampling_of(model.objective, thinking=thinking)
        reserved = sampling.max_new_tokens
    prompts = [model.prompt(chat, answer=reserved, thinking=thinking) for chat in chats]
    return [Asked(chat, ids, model.longest(ids, sampling)) for chat, ids in zip(chats, prompts, strict=True)]


def asker(model: LocalModel, examples: Sequence[Example]) -> Ask:
    """Return a function that answers examples with a file, as the tuned model is asked."""
    prompts = prompts_of(model, examples)
    thinking = thinking_of(model)
    splitter = ThoughtSplitter.of(model.template, thinking=thinking)
    labels = model.objective.known_labels
    ids = [prompt.ids for prompt in prompts]
    longest = [prompt.longest for prompt in prompts]
    positions = max(map(len, ids)) + max(MIN_ANSWER_TOKENS, *longest)

    def ask(file: Path) -> tuple[list[str], float]:
        program = llama_cpp(file, positions=positions, thinks=bool(thinking))
        texts = [splitter.split(text)[1].strip() for text in program.answers(ids, longest=longest, choices=labels)]
        answers = [model.template.in_json(text, row.chat) for text, row in zip(texts, prompts, strict=True)]
        return answers, program.speed(ids[0])

    return ask


def _validation_deltas(search: Search, candidates: Sequence[Candidate], rows: HeldOutRows) -> dict[str, float]:
    """Return by name how much the score on validation rows changes, the smallest file first, until TESTED may pass."""
    original = rows.on_validation(search.model)
    deltas: dict[str, float] = {}
    promising = 0
    for candidate in track(candidates, "scoring files on validation rows", unit="files", total=len(candidates)):
        if promising < TESTED:  # larger files are not needed
            with search.rounded(candidate.types):
                deltas[candidate.name] = rows.on_validation(search.model) - original
            promising += deltas[candidate.name] >= -rows.margin / 2
    return deltas
