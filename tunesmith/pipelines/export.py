"""`tunesmith export`: write a run for another program, run it there, and compare the answers with the original."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tunesmith.config import load_recipe
from tunesmith.data.files import write_whole, writing
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError, Refused
from tunesmith.evaluation.predict import subsample
from tunesmith.evaluation.retention import items, spread
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.export.formats import GGUF, merged, refuse, write_adapter, write_file, write_merged
from tunesmith.inference.export.gguf_quantize import MIXTURES, check_quantizer
from tunesmith.inference.export.transformers_runner import Plain, pooled_states
from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.identify import HEAD, MANIFEST_FILE, ModelManifest, find_model, read_manifest
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load, read_base
from tunesmith.metrics.numbers import spearman
from tunesmith.metrics.task_scores import PER_ROW, SCALES, WHOLE, value
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.loading.base_from_run import begins_from
from tunesmith.models.loading.checkpoint import MANIFEST, write_folder
from tunesmith.models.loading.locate import AS_THEY_ARE, locate
from tunesmith.objectives import Reward
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.pipelines.smallest import HeldOutRows, Search
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import Prediction, read_predictions, rows_of_task
from tunesmith.report.schema import Export, Smallest, read_report
from tunesmith.training.read import read_data

SMALLEST = "smallest"
# Precision of the weights in each format, the default first. An adapter keeps the precision of training.
DTYPES = {"merged": ("f32", "f16", "bf16"), "gguf": ("f16", *MIXTURES), "adapter": ("f32",)}
PROGRAMS = {"merged": "transformers", "adapter": "transformers and PEFT", "gguf": "llama.cpp"}
# Minimum share of equal answers and maximum change of the score. A change by one row is always allowed.
BOUNDS = {
    "merged": (1.0, 0.0),
    "merged f16": (0.95, 0.005),
    "merged bf16": (0.90, 0.01),
    "adapter": (1.0, 0.0),
    "gguf f16": (0.95, 0.005),
    **{f"gguf {name}": (0.0, 0.05) for name in MIXTURES},
    "gguf q8_0": (0.90, 0.01),
    f"gguf {SMALLEST}": (0.0, 0.05),  # of a metric that was not tested against the margin
}
# Maximum difference of two pooled states, relative to their norm; larger where the weights are rounded to 16 bits.
MAX_STATE_DIFFERENCE = 1e-4
MAX_ROUNDED_STATE_DIFFERENCE = {"merged f16": 0.01, "merged bf16": 0.05}
# The next finer format, suggested when an export differs too much.
FINER = {f"gguf {name}": finer for finer, name in pairwise(("f16", *MIXTURES))}
FINER |= {"merged bf16": "f16", "merged f16": "f32"}
IMPORTANCE_ROWS = 128  # training rows that measure which columns matter
COMPARED_ROWS = 64
# Rows of a model that states probabilities or rewards, and label scores in all; both only read the rows.
STATED_ROWS, STATED_SCORES = 200, 2000
# Maximum difference of a probability, or of a reward relative to the largest one.
MAX_DIFFERENCE = {"merged": 1e-4, "merged f16": 0.05, "merged bf16": 0.1}
# With thoughts before the answers: fewer rows, because each answer takes several times as long.
THOUGHT_ROWS = 16
# Values are equal up to this share of the deviation of the training rows; rank correlations, where near ties may swap.
MAX_NUMBER_DIFFERENCE, MAX_RANK_CHANGE = 0.01, 0.001
# Tokens of a text that a domain model completes, and tokens of the completion.
BEGINNING_TOKENS = 48
MIN_ANSWER_TOKENS = 512  # context that llama.cpp reserves for an answer


class OpenedExport(Protocol):
    """Another program that has loaded an export."""

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Encode each chat."""
        ...

    def ids(self, text: str) -> list[int]:
        """Encode a text."""
        ...

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Generate greedily, at most `longest` tokens per prompt."""
        ...


Opener = Callable[[], OpenedExport]
# Maps token ids to the pooled states [B, D] of the other program.
States = Callable[[Sequence[list[int]]], Tensor]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The format of an export: merged, gguf or adapter, and the precision of the weights."""

    kind: str
    dtype: str  # of the weights, or `smallest`
    margin: float = 1.0  # of `smallest`, in points

    @classmethod
    def of(
        cls, kind: str = "", dtype: str = "", *, smallest: bool = False, margin: float | None = None
    ) -> ExportRequest:
        """Return the request for a format, merged by default, and its dtype, the first by default.

        Raises:
            RecipeError: the options exclude each other, or the format has no such dtype.
        """
        if smallest:
            if dtype or kind not in ("", "gguf"):
                given = f"--dtype {dtype}" if dtype else f"--format {kind}"
                raise RecipeError(f"--smallest: writes a gguf file and chooses its types; omit {given}")
            return cls.smallest(1.0 if margin is None else margin)
        if margin is not None:
            raise RecipeError("--margin: is the loss that --smallest does not accept; add --smallest, or omit it")
        kind = kind or "merged"
        if dtype and dtype not in DTYPES[kind]:
            supported = " or ".join(DTYPES[kind])
            raise RecipeError(f"--dtype {dtype}: not supported by {kind}; use {supported}, or omit it")
        return cls(kind, dtype or DTYPES[kind][0])

    @classmethod
    def smallest(cls, margin: float = 1.0) -> ExportRequest:
        """Return the request for the smallest GGUF file not worse by a margin in points. Raises RecipeError."""
        if not 0 < margin < 100:
            raise RecipeError(f"--margin {margin:g}: expected points of the metric above 0 and below 100; use 1")
        return cls("gguf", SMALLEST, margin)

    @property
    def name(self) -> str:
        """Return the name used in tables and folder names."""
        return self.kind if self.dtype == "f32" else f"{self.kind} {self.dtype}"


@dataclass(frozen=True, slots=True)
class ProgramAgreement:
    """The agreement of two programs on some rows."""

    metric: str
    rows: int
    same_prompts: float  # share of prompts with equal token ids
    same_answers: float  # share of equal answers or states
    score_original: float | None = None  # None if the rows have no reference answers
    score_export: float | None = None
    compared: str = "answers"  # answers, states, labels, values, words or preferences
    # Of a probability, of a reward relative to the largest one, or of a number relative to the deviation of the rows.
    max_difference: float | None = None


def export(
    run: Path, request: ExportRequest, *, out: Path | None, on_event: EventHandler, offline: bool = False
) -> Export:
    """Write an export, compare the answers of the other program with the original, and add the result to the report.

    Args:
        run: folder of a finished run.
        request: the format.
        out: folder of the export; None for `export/NAME` in the run folder.
        on_event: receives progress.
        offline: do not access the network.

    Raises:
        Refused: the export differs by more than BOUNDS. It is kept, and the report has it, but a GGUF file is removed
            if its tokens differ or there is no finer format.
        RecipeError: the model cannot be exported in this format.
        CheckpointError: the run is broken, or `out` contains other files.
    """
    folder = find_model(run, offline=offline)
    manifest = read_manifest(folder)
    refuse(folder, manifest, request.kind)
    if request.kind == "adapter" and begins_from(locate(manifest.base, offline=offline), where=manifest.base)[0]:
        raise RecipeError("export: the base is another run, merged in memory only; use --format merged")
    here = (folder.parent / "report.json").exists()  # otherwise downloaded: only the model
    out = out or (folder.parent if here else Path()) / "export" / request.name.replace(" ", "-")
    if out.exists() and not (out.is_dir() and (_is_export(out) or not any(out.iterdir()))):
        raise CheckpointError(f"{out}: contains other files; choose another --out")
    if not (rows := read_predictions(folder.parent) if here else _general_rows(manifest)):
        raise CheckpointError(f"{folder.parent}: predictions.jsonl is missing; run `tunesmith tune` again")
    smallest = _write(folder, manifest, request, out, rows=rows if here else [], on_event=on_event, offline=offline)
    on_event(StageStarted(f"comparing the original and {PROGRAMS[request.kind]}"))
    began = time.perf_counter()
    try:
        agreements = _compare(folder, request, out, rows, offline=offline)
    except ModelError:
        if request.kind == "gguf":  # llama.cpp cannot open it
            shutil.rmtree(out)
        raise
    result = Export(
        format=request.name,
        folder=str(out),
        checked=PROGRAMS[request.kind],
        seconds=time.perf_counter() - began,
        faults=find_problems(agreements, request.name, allowed_change=_tested(request, smallest)),
        smallest=smallest,
        **asdict(overall(list(agreements.values()))),
    )
    if here:
        report = read_report(folder.parent)
        exports = [*(earlier for earlier in report.exports if earlier.format != result.format), result]
        updated = report.model_copy(update={"exports": exports})
        write_whole(folder.parent / "report.json", updated.model_dump_json(indent=1))
        write_reports(folder.parent)
    if result.faults:
        raise _refusal(result, request, out)
    return result


def _write(
    folder: Path,
    manifest: ModelManifest,
    request: ExportRequest,
    out: Path,
    *,
    rows: Sequence[Prediction],
    on_event: EventHandler,
    offline: bool,
) -> Smallest | None:
    """Write the export; return how the types were chosen, if they were. `rows` are the test rows of the run."""
    run = folder.parent
    chooser = None
    if quantized := request.dtype in (*MIXTURES, SMALLEST):
        check_quantizer(request.dtype)
    if request.dtype == SMALLEST:
        if not rows:
            raise CheckpointError(f"{folder}: has no rows to choose by; use --dtype instead of --smallest")
        chooser = HeldOutRows(run, request.margin, rows, offline=offline)
    on_event(StageStarted(f"writing {out}"))
    if request.kind == "adapter":
        model = load(folder, device="cpu", offline=offline)
        write_folder(out, lambda half: write_adapter(model, folder, half, on_note=lambda text: on_event(Note(text))))
        return None
    model = merged(folder, manifest, offline=offline)
    if request.kind == "merged":
        write_folder(out, lambda half: write_merged(model, folder, half, dtype=request.dtype))
        return None
    ids = _importance_rows(model, run, on_event, offline=offline) if quantized else []
    if chooser is not None:
        return _write_smallest(model, folder, out, chooser, rows=ids, offline=offline)
    name = run.name if folder.name == "model" else folder.name
    write_folder(
        out,
        lambda half: write_file(
            model, half, dtype=request.dtype, name=name, rows=ids, on_note=lambda text: on_event(Note(text))
        ),
    )
    return None


def _importance_rows(model: LocalModel, run: Path, on_event: EventHandler, *, offline: bool) -> list[Encoded]:
    """Return training rows; none if the run or its rows are gone."""
    try:
        tasks = load_recipe(run / "recipe.yaml")[0].tasks
        split = {name: read_data(task, offline=offline).split for name, task in tasks.items()}
    except (DataError, RecipeError) as error:
        on_event(Note(f"no importance matrix, because the training rows are missing ({error})"))
        return []
    return [
        encoded
        for task in tasks
        for encoded in model.at(task).encode(subsample(split[task].train, IMPORTANCE_ROWS // len(tasks), 0))
    ]


def _write_smallest(
    model: LocalModel, folder: Path, out: Path, chooser: HeldOutRows, *, rows: list[Encoded], offline: bool
) -> Smallest:
    """Write an export with the smallest file that is shown to be not worse by the margin, or the one in f16."""
    prompts = chooser.asked(model)
    thinking = _thinking(model)
    splitter = ThoughtSplitter.of(model.template, thinking=thinking)
    labels = model.classifier.labels if model.objective.produces == "labels" else ()
    ids = [prompt.ids for prompt in prompts]
    longest = [prompt.longest for prompt in prompts]
    positions = max(map(len, ids)) + max(MIN_ANSWER_TOKENS, *longest)

    def ask(file: Path) -> tuple[list[str], float]:
        program = _llama_cpp(file, positions=positions, thinks=bool(thinking))
        texts = [splitter.split(text)[1].strip() for text in program.answers(ids, longest=longest, choices=labels)]
        answers = [model.template.in_json(text, row.chat) for text, row in zip(texts, prompts, strict=True)]
        return answers, program.speed(ids[0])

    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
            place = Path(made)
            write_file(model, place, dtype="f16", name=folder.parent.name)
            whole = (place / GGUF).rename(place / "f16.gguf")
            base = partial(read_base, read_manifest(folder), device="cpu", offline=offline)
            smallest = Search(model, whole, rows).write(chooser, ask=ask, base=lambda: base().network)

            def fill(half: Path) -> None:
                for file in (GGUF, "Modelfile"):
                    shutil.move(place / file, half)

            write_folder(out, fill)
    return smallest


def _refusal(result: Export, request: ExportRequest, out: Path) -> Refused:
    """Return the error of an export that differs; a GGUF file that could be used unnoticed is removed."""
    finer = FINER.get(request.name)
    fix = f"use --dtype {finer}" if finer else "do not use it, and please report this"
    if request.kind == "gguf" and (not finer or result.same_prompts < 1):  # fewer bits are not the reason
        shutil.rmtree(out)
        fix = "it was removed; nearest that works: --format merged"
    return Refused(f"{out}: {'; '.join(result.faults)}; {fix}")


def _general_rows(manifest: ModelManifest) -> list[Prediction]:
    """Return shipped questions with two answers each as rows without references, for a run without its test rows."""
    return [
        Prediction(
            where="general", task=task, question=f"{item.question}\n\nA: {item.options[0]}\n\nB: {item.options[1]}",
            gold="", base="", tuned="",
        )
        for task in manifest.objective.task_objectives
        for item in spread(items(), COMPARED_ROWS)
    ]  # fmt: skip


def _is_export(out: Path) -> bool:
    """Return whether a folder is an export, which may be replaced; models and checkpoints of runs have a manifest."""
    written = any((out / name).exists() for name in (GGUF, "config.json", "adapter_config.json"))
    return written and (out / MANIFEST).exists() and not (out / MANIFEST_FILE).exists()


def _compare(
    folder: Path, request: ExportRequest, out: Path, rows: Sequence[Prediction], *, offline: bool
) -> dict[str, ProgramAgreement]:
    """Return the agreement of original and export for each task of the run."""
    manifest = read_manifest(folder)
    model = load(folder, device="cpu", offline=offline)
    if request.kind == "merged" and (usage := read_usage(out)) is not None:
        return {SINGLE_TASK: by_usage(model, rows, usage.function(out))}
    tasks = list(dict.fromkeys(row.task for row in rows))
    positions = manifest.limit + max(MIN_ANSWER_TOKENS, *(model.at(task).sampling.max_new_tokens for task in tasks))
    thinks = bool(model.thinking_mode())
    opened = cache(_opener(manifest, request, out, positions=positions, thinks=thinks, offline=offline))
    agreements = {}
    for task in tasks:
        task_rows = rows_of_task(rows, task)[: COMPARED_ROWS // len(tasks)]
        if (folder / HEAD).exists():
            states = _states(manifest, request, out, offline=offline)
            agreements[task] = by_states(model.at(task), task_rows, states, form=request.name)
        else:
            agreements[task] = by_answers(model.at(task), task_rows, opened)
    return agreements


def _opener(
    manifest: ModelManifest, request: ExportRequest, out: Path, *, positions: int, thinks: bool, offline: bool
) -> Opener:
    """Return a function that loads the export in the program it is written for."""
    if request.kind == "gguf":
        return lambda: _llama_cpp(out / GGUF, positions=positions, thinks=thinks)
    if request.kind == "merged":
        return lambda: Plain(out)
    options = manifest.technique.load_options()  # an adapter trained over a 4-bit base is compared over one
    return lambda: Plain(locate(manifest.base, offline=offline), adapter=out, options=options)


def _llama_cpp(file: Path, *, positions: int, thinks: bool) -> LlamaCpp:
    values = {"enable_thinking": thinks, "thinking": thinks}  # llama.cpp sets the switch itself otherwise
    return LlamaCpp(file, threads=torch.get_num_threads(), positions=positions, template_values=values)


def _states(manifest: ModelManifest, request: ExportRequest, out: Path, *, offline: bool) -> States:
    """Return a function that computes pooled states with transformers, from the export."""
    if request.kind == "adapter":
        base = locate(manifest.base, offline=offline)
        options = manifest.technique.load_options()
        return lambda ids: pooled_states(base, ids, adapter=out, family=manifest.family, options=options)
    return lambda ids: pooled_states(out, ids, adapter=None, family=manifest.family, options=AS_THEY_ARE)


def by_answers(model: LocalModel, rows: Sequence[Prediction], opened: Opener) -> ProgramAgreement:
    """Compare the greedy answers of both programs to the same rows."""
    template, thinking = model.template, _thinking(model)
    rows = rows[:THOUGHT_ROWS] if thinking else rows
    chats, prompts, longest = _prompts(model, rows)
    generated = generate(model.policy, prompts, sampling=Sampling(max_new_tokens=longest), template=template)
    original = [template.decode(answer.ids).strip() for answer in generated]
    program = opened()
    texts = [template.harmless(row.question) for row in rows]
    exported_prompts = program.prompts(chats) if chats else [program.ids(text)[:BEGINNING_TOKENS] for text in texts]
    exported = program.answers(prompts, longest=longest)
    metric = model.objective.metric
    gold = [row.reference for row in rows]
    scored = all(gold) and (metric in PER_ROW or metric in WHOLE)
    splitter = ThoughtSplitter.of(template, thinking=thinking)
    # Programs return text without special tokens. Where these mark the thoughts (Gemma 4, gpt-oss), it has no answers.
    scored = scored and all(splitter.decode(answer.ids) == template.decode(answer.ids) for answer in generated)
    return ProgramAgreement(
        metric=metric,
        rows=len(rows),
        same_prompts=_equal_share(exported_prompts, prompts),
        same_answers=_equal_share(exported, original),
        score_original=value(metric, gold, [splitter.split(text)[1] for text in original]) if scored else None,
        score_export=value(metric, gold, [splitter.split(text)[1] for text in exported]) if scored else None,
    )


def _thinking(model: LocalModel) -> bool | None:
    return None if model.objective.produces != "text" else model.thinking_mode()


def _prompts(model: LocalModel, rows: Sequence[Prediction]) -> tuple[list[list[Message]], list[list[int]], int]:
    """Return the chat and the token ids of each row, and the most tokens of an answer; texts have no chats."""
    template, thinking = model.template, _thinking(model)
    # Special tokens in the rows are escaped for both programs.
    texts = [template.harmless(row.question) for row in rows]
    if model.objective.produces == "likelihood":
        return [], [template.document(text, limit=BEGINNING_TOKENS).ids for text in texts], BEGINNING_TOKENS
    if model.objective.produces == "labels":
        asked = [model.classifier.messages(text) for text in texts]
        longest = 2 + max(len(template.answer(asked[0], label)) for label in model.objective.known_labels)
    else:
        asked = [[Message("user", text)] for text in texts]
        longest = model.sampling.max_new_tokens
    budget = model.prompt_budget(longest)
    chats = [template.fit(messages, budget, thinking=thinking)[0] for messages in asked]
    prompts = [template.prompt(chat, thinking=thinking) for chat in chats]
    return chats, prompts, min(model.longest(ids, Sampling(max_new_tokens=longest)) for ids in prompts)


def by_states(model: LocalModel, rows: Sequence[Prediction], states: States, *, form: str) -> ProgramAgreement:
    """Compare the states [B, D] that a head receives, of both programs for the same token ids.

    The name of the format determines the allowed difference.
    """
    original = model.embed([row.question for row in rows])
    exported = states([model.tokens(row.question).ids for row in rows])
    bound = MAX_ROUNDED_STATE_DIFFERENCE.get(form, MAX_STATE_DIFFERENCE)
    same = (exported - original).norm(dim=1) <= bound * original.norm(dim=1)
    share = float(same.double().mean())
    return ProgramAgreement("states", len(rows), same_prompts=1.0, same_answers=share, compared="states")


def by_usage(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the outputs of a model with those of the function in the README: classify, predict, reward or fill.

    Returns the share of equal labels, values, preferences or words, and the largest difference of what is stated for
    them.
    """
    if model.objective.produces == "score":
        return _by_rewards(model, rows, function)
    if model.objective.produces == "number":
        return _by_numbers(model, rows, function)
    if model.objective.produces == "likelihood":
        return _by_words(model, rows, function)
    objective = model.classifier
    rows = rows[: max(1, min(STATED_ROWS, STATED_SCORES // len(objective.labels)))]
    texts = [_read_text(model, row.question) for row in rows]
    original = model.classify(texts)
    exported = [{one["label"]: one["score"] for one in answer} for answer in function(texts)]
    pairs = list(zip(original, exported, strict=True))
    differences = [abs(value - other[label]) for one, other in pairs for label, value in one.probabilities.items()]
    labels = [_labels(probabilities, multi=objective.multi) for probabilities in exported]
    scored = not objective.multi and all(row.gold for row in rows)
    gold = [row.gold for row in rows]
    return ProgramAgreement(
        metric=objective.metric,
        rows=len(rows),
        same_prompts=1.0,
        same_answers=_equal_share(labels, [set(one.labels) for one in original]),
        score_original=value(objective.metric, gold, [one.label for one in original]) if scored else None,
        score_export=value(objective.metric, gold, [min(one) for one in labels]) if scored else None,
        compared="labels",
        max_difference=max(differences),
    )


def _labels(probabilities: Mapping[str, float], *, multi: bool) -> set[str]:
    """Return the labels that apply, by the probability of each."""
    if multi:
        return {label for label, probability in probabilities.items() if probability >= 0.5}
    return {max(probabilities, key=probabilities.__getitem__)}


def _read_text(model: LocalModel, text: str) -> str:
    """Return a text as the model reads it: special tokens escaped, and shortened to the prompt of a decoder."""
    text = model.template.harmless(text)
    if not model.template.chats:
        return text
    if model.objective.produces == "number":
        (message,) = model.template.fit([model.objective.user_message(text)], model.limit)[0]
        return message.content[len(model.objective.user_message("").content) :]
    before = model.classifier.messages("")[0].content
    longest = 0 if model.policy.head is not None else max(map(len, model.label_tokens().values()))
    (message,) = model.template.fit(model.about(text), model.prompt_budget(longest))[0]
    return message.content[len(before) :]


def _by_rewards(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the rewards of both completions of each row, and the completion that is preferred."""
    pairs = []
    for row in rows:
        question, _, answers = model.template.harmless(row.question).partition("\n\nA: ")
        chosen, _, rejected = answers.partition("\n\nB: ")
        both = [(question, chosen), (question, rejected)]
        if not any(_is_shortened(model, *pair) for pair in both):
            pairs += both
        if len(pairs) == 2 * STATED_ROWS:
            break
    if not pairs:
        raise CheckpointError(f"every test row exceeds {model.limit} tokens, so none can be compared; tune with more")
    original, exported = model.rewards(pairs), [float(one) for one in function(pairs)]
    largest = max(1.0, *(abs(one) for one in original))
    preferred = [[a > b for a, b in zip(side[::2], side[1::2], strict=True)] for side in (original, exported)]
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(pairs) // 2,
        same_prompts=1.0,
        same_answers=_equal_share(preferred[1], preferred[0]),
        compared="preferences",
        max_difference=max(abs(a - b) for a, b in zip(original, exported, strict=True)) / largest,
    )


def _by_numbers(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the numbers of each text; the differences are relative to the deviation of the training rows."""
    objective = model.regressor
    rows = rows[:STATED_ROWS]
    texts = [_read_text(model, row.question) for row in rows]
    original, exported = model.predict(texts), [float(one) for one in function(texts)]
    differences = [abs(a - b) / objective.scale for a, b in zip(original, exported, strict=True)]
    gold = [float(row.gold) for row in rows if row.gold]  # all of them or none
    return ProgramAgreement(
        metric=objective.metric,
        rows=len(rows),
        same_prompts=1.0,
        same_answers=sum(difference <= MAX_NUMBER_DIFFERENCE for difference in differences) / len(rows),
        score_original=spearman(gold, original) if gold else None,
        score_export=spearman(gold, exported) if gold else None,
        compared="values",
        max_difference=max(differences),
    )


def _is_shortened(model: LocalModel, prompt: str, answer: str) -> bool:
    assert isinstance(model.objective, Reward)
    return model.objective.read([Message("user", prompt)], [answer], model.template, limit=model.limit)[1]


def _by_words(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the words that a masked language model proposes for the fifth word of each text."""
    mask = model.template.tokenizer.mask_token
    texts = []
    for row in rows[:STATED_ROWS]:
        words = model.template.harmless(row.question).split()
        place = min(4, len(words) - 1)
        texts.append(" ".join([*words[:place], mask, *words[place + 1 :]]))
    original = model.fill(texts)
    exported = [[(one["token_str"].strip(), one["score"]) for one in answer] for answer in function(texts)]
    pairs = list(zip(original, exported, strict=True))
    differences = [abs(one[1] - other[1]) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True)]
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(texts),
        same_prompts=1.0,
        same_answers=_equal_share([theirs[0][0] for _, theirs in pairs], [ours[0][0] for ours, _ in pairs]),
        compared="words",
        max_difference=max(differences),
    )


def overall(parts: Sequence[ProgramAgreement]) -> ProgramAgreement:
    """Combine the agreement of all tasks; the scores are those of the first task, the headline of the run."""
    rows = sum(part.rows for part in parts)
    prompts = sum(part.same_prompts * part.rows for part in parts) / rows
    answers = sum(part.same_answers * part.rows for part in parts) / rows
    return replace(parts[0], rows=rows, same_prompts=prompts, same_answers=answers)


def _tested(request: ExportRequest, smallest: Smallest | None) -> float:
    """Return the change of the score that a test has settled, as a share of its range."""
    if smallest is None:
        return 0.0
    return request.margin / 100 if smallest.unscored else math.inf


def find_problems(
    agreements: Mapping[str, ProgramAgreement], form: str, *, allowed_change: float = 0
) -> tuple[str, ...]:
    """Return the differences, by task, that exceed the BOUNDS of the format; empty for an export that may be used.

    A larger change of the score may be allowed.
    """
    min_same, max_change = BOUNDS[form]
    max_change = max(max_change, allowed_change)
    problems = []
    for task, part in agreements.items():
        prefix = f"{task}: " if task else ""
        if part.same_prompts < 1:
            problems.append(f"{prefix}{1 - part.same_prompts:.1%} of the prompts are tokenized differently")
        if part.same_answers < min_same:
            problems.append(
                f"{prefix}{part.same_answers:.1%} of {part.rows} answers are the same, expected at least {min_same:.0%}"
            )
        allowed_difference = MAX_DIFFERENCE.get(form, 0.0)
        if part.max_difference is not None and not part.max_difference <= allowed_difference:
            kind = {"preferences": "reward", "values": "value"}.get(part.compared, "probability")
            problems.append(
                f"{prefix}a {kind} differs by {part.max_difference:.1e}, expected at most {allowed_difference:.0e}"
            )
        if part.score_original is not None and part.score_export is not None:
            change = abs(part.score_export - part.score_original)
            allowed = max(max_change, 1 / part.rows if max_change else 0)
            if part.compared == "values":
                allowed = max(allowed, MAX_RANK_CHANGE)
            if change / SCALES.get(part.metric, 1.0) > allowed + 1e-9:
                problems.append(f"{prefix}{part.metric} changes by {change:.3f}")
    return tuple(problems)


def _equal_share(values: Sequence[object], others: Sequence[object]) -> float:
    return sum(a == b for a, b in zip(values, others, strict=True)) / len(others)
