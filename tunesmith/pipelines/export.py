"""A run in another program's format, run there and compared with the original before anybody relies on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tunesmith.data.files import write_whole
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, RecipeError, Refused
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.export.formats import GGUF, HEAD, merged, refuse, write_adapter, write_file, write_merged
from tunesmith.inference.export.transformers_runner import Plain, pooled_states
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import MANIFEST_FILE, ModelManifest, find_model, load, read_manifest
from tunesmith.metrics.task_scores import PER_ROW, SCALES, WHOLE, value
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.base_from_run import begins_from
from tunesmith.models.loading.checkpoint import MANIFEST, write_folder
from tunesmith.models.loading.load import AS_THEY_ARE, locate
from tunesmith.objectives import Classify, Domain
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import Prediction, read_predictions, rows_of_task
from tunesmith.report.schema import Export, read_report

# Tokens of a text that a model of texts goes on from, and how far it goes.
BEGINNING = 48


# Largest difference of two pooled states, as a share of their length; weights of 16 bits make another.
SAME_STATE = 1e-4


ROUNDED_STATE = {"merged f16": 0.01, "merged bf16": 0.05}


# By format: least share of equal answers, and most that the score may move; one row's worth is always allowed.
BOUNDS = {
    "merged": (1.0, 0.0),
    "merged f16": (0.95, 0.005),
    "merged bf16": (0.90, 0.01),
    "adapter": (1.0, 0.0),
    "gguf f16": (0.95, 0.005),
    "gguf q8_0": (0.90, 0.01),
    "gguf q4_0": (0.0, 0.05),
}


class OpenedExport(Protocol):
    """Another program that has opened an export."""

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The ids after which it answers each chat."""
        ...

    def ids(self, text: str) -> list[int]:
        """A text in its tokens."""
        ...

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Its greedy answers."""
        ...


Opener = Callable[[], OpenedExport]


States = Callable[[Sequence[list[int]]], Tensor]


@dataclass(frozen=True, slots=True)
class ProgramAgreement:
    """How far two programs agree over some rows; scores where the rows say what is right."""

    metric: str
    rows: int
    same_prompts: float
    same_answers: float
    score_original: float | None = None
    score_export: float | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What both sides are asked: chats or texts, the ids that they have here, and how far an answer goes."""

    chats: list[list[Message]]
    texts: list[str]
    prompts: list[list[int]]
    longest: int


def by_answers(model: LocalModel, rows: Sequence[Prediction], opened: Opener) -> ProgramAgreement:
    """The greedy answers of both sides to the same rows."""
    asked = _asked(model, rows)
    sampling = Sampling(max_new_tokens=asked.longest)
    drawn = generate(model.policy, asked.prompts, sampling=sampling, template=model.template)
    ours = [model.template.decode(one.ids).strip() for one in drawn]
    program = opened()
    theirs = [program.ids(text)[:BEGINNING] for text in asked.texts] or program.prompts(asked.chats)
    said = program.answers(asked.prompts, longest=asked.longest)
    metric, gold = model.objective.metric, [row.gold for row in rows]
    scored = all(gold) and (metric in PER_ROW or metric in WHOLE)
    return ProgramAgreement(
        metric=metric,
        rows=len(rows),
        same_prompts=_share(theirs, asked.prompts),
        same_answers=_share(said, ours),
        score_original=value(metric, gold, ours) if scored else None,
        score_export=value(metric, gold, said) if scored else None,
    )


def by_states(model: LocalModel, rows: Sequence[Prediction], states: States, *, form: str) -> ProgramAgreement:
    """The states [B, D] that a head reads, of both sides over the same ids."""
    ours = model.embed([row.question for row in rows])
    theirs = states([model.tokens(row.question).ids for row in rows])
    same = (theirs - ours).norm(dim=1) <= ROUNDED_STATE.get(form, SAME_STATE) * ours.norm(dim=1)
    return ProgramAgreement("states", len(rows), same_prompts=1.0, same_answers=float(same.double().mean()))


def overall(parts: Sequence[ProgramAgreement]) -> ProgramAgreement:
    """The rows of all tasks together; the scores are those of the first, which is the headline."""
    rows = sum(part.rows for part in parts)
    prompts = sum(part.same_prompts * part.rows for part in parts) / rows
    answers = sum(part.same_answers * part.rows for part in parts) / rows
    return replace(parts[0], rows=rows, same_prompts=prompts, same_answers=answers)


def find_problems(found: Mapping[str, ProgramAgreement], form: str) -> tuple[str, ...]:
    """What is wrong with an export of this form, by task where there are several; empty for one that may be used."""
    return tuple(f"{task}: {said}" if task else said for task, part in found.items() for said in _faults(part, form))


def _faults(found: ProgramAgreement, form: str) -> list[str]:
    least, most = BOUNDS[form]
    said = []
    if found.same_prompts < 1:
        said.append(f"{1 - found.same_prompts:.1%} of the prompts become other tokens there")
    if found.same_answers < least:
        said.append(f"{found.same_answers:.1%} of {found.rows} answers are the same, {least:.0%} have to be")
    if found.score_original is not None and found.score_export is not None:
        moved = abs(found.score_export - found.score_original)
        if moved / SCALES.get(found.metric, 1.0) > max(most, 1 / found.rows if most else 0) + 1e-9:
            said.append(f"{found.metric} moves by {moved:.3f}")
    return said


def _asked(model: LocalModel, rows: Sequence[Prediction]) -> _Asked:
    """Test rows as this model is asked them, special tokens inside them broken up for both sides alike."""
    objective, template = model.objective, model.template
    texts = [template.harmless(row.question) for row in rows]
    if isinstance(objective, Domain):
        return _Asked([], texts, [template.document(text, limit=BEGINNING).ids for text in texts], BEGINNING)
    if isinstance(objective, Classify):
        asked = [objective.messages(text) for text in texts]
        longest = 2 + max(len(template.answer(asked[0], label)) for label in objective.labels)
    else:
        asked = [[Message("user", text)] for text in texts]
        longest = model.sampling.max_new_tokens
    chats = [template.fit(messages, model.prompt_budget(longest))[0] for messages in asked]
    prompts = [template.prompt(chat) for chat in chats]
    return _Asked(chats, [], prompts, min(model.longest(ids, Sampling(max_new_tokens=longest)) for ids in prompts))


def _share(some: Sequence[object], others: Sequence[object]) -> float:
    """Share of pairs that are equal."""
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(others)


ROWS = 64


# In which numbers a format keeps the weights, the first if none are named; an adapter stays as it was learned.
NUMBERS = {"merged": ("f32", "f16", "bf16"), "gguf": ("f16", "q8_0", "q4_0"), "adapter": ("f32",)}


PROGRAMS = {"merged": "transformers", "adapter": "transformers and PEFT", "gguf": "llama.cpp"}


# Positions that llama.cpp keeps for an answer at least.
MIN_ANSWER_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is to be written: merged, gguf or adapter, and in which numbers."""

    kind: str
    numbers: str

    @classmethod
    def of(cls, kind: str, numbers: str = "") -> ExportRequest:
        """A format in these numbers, else in its first. Raises RecipeError for numbers that it has not."""
        if numbers and numbers not in NUMBERS[kind]:
            has = " or ".join(NUMBERS[kind])
            raise RecipeError(f"--numbers {numbers}: {kind} is not kept so; use {has}, or leave it out")
        return cls(kind, numbers or NUMBERS[kind][0])

    @property
    def name(self) -> str:
        """The word for it in tables and folder names."""
        return self.kind if self.numbers == "f32" else f"{self.kind} {self.numbers}"


def export(
    run: Path, request: ExportRequest, *, out: Path | None, on_event: EventHandler, offline: bool = False
) -> Export:
    """Write the export, let the other program answer the run's own test rows from it, and compare.

    The comparison stands in the run's report. Raises Refused where the export differs by more than BOUNDS, after
    both are written; RecipeError for a form that this model has not, the errors of the doors for a broken run.
    """
    folder = find_model(run)
    about = read_manifest(folder)
    refuse(folder, about, request.kind)
    if request.kind == "adapter" and begins_from(locate(about.base, offline=offline), where=about.base)[0]:
        raise RecipeError("export: its base is another run, made in memory only; nearest that works: --format merged")
    out = out or folder.parent / "export" / request.name.replace(" ", "-")
    if out.exists() and not (out.is_dir() and (_is_export(out) or not any(out.iterdir()))):
        raise CheckpointError(f"{out}: holds something else; give another --out")
    rows = read_predictions(folder.parent)
    if not rows:
        raise CheckpointError(f"{folder.parent}: its predictions.jsonl is gone, so no export could be compared")
    on_event(StageStarted(f"writing {out}"))
    _write(folder, about, request, out, offline=offline)
    on_event(StageStarted(f"asking the original and {PROGRAMS[request.kind]}: {min(len(rows), ROWS)} rows"))
    began = time.perf_counter()
    agreements = _agreements(folder, request, out, rows, offline=offline)
    found = Export(
        format=request.name,
        folder=str(out),
        checked=PROGRAMS[request.kind],
        seconds=time.perf_counter() - began,
        faults=find_problems(agreements, request.name),
        **asdict(overall(list(agreements.values()))),
    )
    _keep(folder.parent, found)
    if found.faults:
        raise Refused(f"{out}: {'; '.join(found.faults)}; {_cure(request)}")
    return found


def _is_export(out: Path) -> bool:
    """Whether a folder is an export, which may be written again; a run's model and checkpoints have a manifest too."""
    made = any((out / name).exists() for name in (GGUF, "config.json", "adapter_config.json"))
    return made and (out / MANIFEST).exists() and not (out / MANIFEST_FILE).exists()


def _agreements(
    folder: Path, request: ExportRequest, out: Path, rows: Sequence[Prediction], *, offline: bool
) -> dict[str, ProgramAgreement]:
    """How far the original and the export agree, for each task of the run."""
    about, model = read_manifest(folder), load(folder, offline=offline)
    tasks, found = dict.fromkeys(row.task for row in rows), {}
    room = about.limit + max(MIN_ANSWER_TOKENS, *(model.at(task).sampling.max_new_tokens for task in tasks))
    opened = cache(_opener(about, request, out, room=room, offline=offline))
    for task in tasks:
        some = rows_of_task(rows, task)[: ROWS // len(tasks)]
        if (folder / HEAD).exists():
            states = _states(about, request, out, offline=offline)
            found[task] = by_states(model.at(task), some, states, form=request.name)
        else:
            found[task] = by_answers(model.at(task), some, opened)
    return found


def _cure(request: ExportRequest) -> str:
    """What to do about an export that differs: fewer bits lose something, all else is a fault of ours."""
    finer = {"gguf q4_0": "q8_0", "gguf q8_0": "f16", "merged bf16": "f16", "merged f16": "f32"}.get(request.name)
    return f"take --numbers {finer}" if finer else "do not use it, and please report how it came about"


def _keep(run: Path, found: Export) -> None:
    """Write the comparison into the run's report, over an earlier one of the same format."""
    report = read_report(run)
    exports = [*(one for one in report.exports if one.format != found.format), found]
    write_whole(run / "report.json", report.model_copy(update={"exports": exports}).model_dump_json(indent=1))
    write_reports(run)


def _write(folder: Path, manifest: ModelManifest, request: ExportRequest, out: Path, *, offline: bool) -> None:
    """The folder, whole or not at all."""
    if request.kind == "adapter":
        model = load(folder, offline=offline)
        write_folder(out, lambda half: write_adapter(model, folder, half))
        return
    model = merged(folder, manifest, offline=offline)
    name = folder.parent.name if folder.name == "model" else folder.name
    if request.kind == "merged":
        write_folder(out, lambda half: write_merged(model, folder, half, numbers=request.numbers))
    else:
        write_folder(out, lambda half: write_file(model, half, numbers=request.numbers, name=name))


def _opener(manifest: ModelManifest, request: ExportRequest, out: Path, *, room: int, offline: bool) -> Opener:
    """How the export is opened in the program it is meant for, with room for so many tokens."""
    if request.kind == "gguf":
        return lambda: LlamaCpp(out / GGUF, threads=torch.get_num_threads(), positions=room)
    if request.kind == "merged":
        return lambda: Plain(out)
    options = manifest.technique.load_options()  # what lies in 4 bits was learned beside those
    return lambda: Plain(locate(manifest.base, offline=offline), adapter=out, options=options)


def _states(manifest: ModelManifest, request: ExportRequest, out: Path, *, offline: bool) -> States:
    """The states that plain transformers makes of ids, from the export."""
    adapted = request.kind == "adapter"
    folder, adapter = (locate(manifest.base, offline=offline), out) if adapted else (out, None)
    options = manifest.technique.load_options() if adapted else AS_THEY_ARE
    return lambda ids: pooled_states(folder, ids, adapter=adapter, family=manifest.family, options=options)
