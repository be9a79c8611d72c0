"""A run in another program's format, run there and compared with the original before anybody relies on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from tunesmith.data.files import write_whole
from tunesmith.errors import CheckpointError, RecipeError, Refused
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.export import GGUF, HEAD, merged, refuse, write_adapter, write_file, write_merged
from tunesmith.inference.folder import MANIFEST_FILE, ModelManifest, find_model, load, read_manifest
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.plain import Plain, pooled_states
from tunesmith.model.checkpoint import MANIFEST, write_folder
from tunesmith.model.load import AS_THEY_ARE, locate
from tunesmith.model.run_base import begins_from
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import Prediction, read_predictions, rows_of_task
from tunesmith.report.schema import Export, read_report
from tunesmith.workflows.parity import Opener, ProgramAgreement, States, by_answers, by_states, find_problems, overall

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
