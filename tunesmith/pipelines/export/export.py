"""The steps of an export: write it, compare it with the original, and add the result to the report."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path

from tunesmith.config import load_recipe
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError, Refused, briefly
from tunesmith.evaluation.predict import subsample
from tunesmith.evaluation.retention import items, spread
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.export.compressed import compress
from tunesmith.inference.export.dtypes import SMALLEST
from tunesmith.inference.export.formats import GGUF, merged, refuse, write_adapter, write_file, write_merged
from tunesmith.inference.export.gguf_quantize import MIXTURES, check_quantizer
from tunesmith.inference.export.transformers_runner import Plain, pooled_states
from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.identify import HEAD, MANIFEST_FILE, ModelManifest, find_model, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.models.loading.base_from_run import begins_from
from tunesmith.models.loading.checkpoint import MANIFEST, write_folder
from tunesmith.models.loading.locate import AS_THEY_ARE, locate
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.pipelines.export.compare import (
    BOUNDS,
    MIN_ANSWER_TOKENS,
    Opener,
    ProgramAgreement,
    States,
    by_answers,
    by_states,
    by_usage,
    find_problems,
    llama_cpp,
    overall,
)
from tunesmith.pipelines.export.request import PROGRAMS, ExportRequest
from tunesmith.pipelines.export.smallest import HeldOutRows, write_smallest
from tunesmith.pipelines.verify.challenge import FILE as CHALLENGE
from tunesmith.pipelines.verify.challenge import read_challenge
from tunesmith.pipelines.verify.verify import verify
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import Prediction, read_predictions, rows_of_task
from tunesmith.report.schema import Export, Smallest, read_report, write_report
from tunesmith.training.read import read_data
from tunesmith.training.run_folder import exclusive_lock, with_name

# The next finer format, suggested when an export differs too much.
FINER = {f"gguf {name}": finer for finer, name in pairwise(("f16", *MIXTURES))}
FINER |= {"merged bf16": "f16", "merged f16": "f32", "gguf smallest": "f16"}
IMPORTANCE_ROWS = 128  # training rows that measure which columns matter
COMPARED_ROWS = 64
ANOTHER_MODEL = ("base", "damaged", "something else")  # verdicts; `undecided` and no verdict show nothing


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
        Refused: the export differs by more than BOUNDS, or claims equal answers and answers the challenge as another
            model. It is kept, and the report has it, but a GGUF file is removed if its tokens differ or there is no
            finer format.
        RecipeError: the model cannot be exported in this format.
        CheckpointError: the run is broken, `out` contains other files, or another process writes it.
        ModelError: a program of the format is missing, or cannot open the export.
        StorageError: the disk is full, or the folder is not writable.
    """
    folder = find_model(run, offline=offline)
    manifest = read_manifest(folder)
    refuse(folder, manifest, request.kind)
    if request.kind == "adapter" and begins_from(locate(manifest.base, offline=offline), where=manifest.base)[0]:
        raise RecipeError("export: the base is another run, merged in memory only; use --format merged")
    here = (folder.parent / "report.json").exists()  # otherwise downloaded: only the model
    out = with_name(out or (folder.parent if here else Path()) / "export" / request.name.replace(" ", "-"))
    if out.exists() and not (out.is_dir() and (_is_export(out) or not any(out.iterdir()))):
        raise CheckpointError(f"{out}: contains other files; choose another --out")
    if not (rows := read_predictions(folder.parent) if here else _general_rows(manifest)):
        raise CheckpointError(f"{folder.parent}: predictions.jsonl is missing; run `tunesmith tune` again")
    with exclusive_lock(out):
        result = _export(folder, manifest, request, out, rows=rows, here=here, on_event=on_event, offline=offline)
    if here:
        write_reports(folder.parent)
    if result.faults:
        raise _refusal(result, request.kind, out, finer=FINER.get(_format_of_bounds(request, result.smallest)))
    return result


def _export(
    folder: Path,
    manifest: ModelManifest,
    request: ExportRequest,
    out: Path,
    *,
    rows: Sequence[Prediction],
    here: bool,
    on_event: EventHandler,
    offline: bool,
) -> Export:
    """Write an export, compare it, and add both to the report; `here` is whether the folder is that of a run."""
    smallest = _write(folder, manifest, request, out, rows=rows if here else [], on_event=on_event, offline=offline)
    on_event(StageStarted(f"comparing the original and {PROGRAMS[request.kind]}"))
    began = time.perf_counter()
    try:
        agreements = _compare(folder, request, out, rows, offline=offline)
    except ModelError:
        if request.kind == "gguf":  # llama.cpp cannot open it, or refuses its chat template
            shutil.rmtree(out)
        raise
    bounds = _format_of_bounds(request, smallest)
    allowed = 0.0  # change of the score, more than the format allows
    if smallest is not None and smallest.chosen != "f16":
        allowed = request.margin / 100 if smallest.unscored else math.inf  # a test has settled it
    faults = find_problems(agreements, bounds, allowed_change=allowed)
    result = Export(
        format=request.name,
        folder=str(out),
        checked=PROGRAMS[request.kind],
        seconds=time.perf_counter() - began,
        faults=faults,
        smallest=smallest,
        **asdict(overall(list(agreements.values()))),
    )
    _record(folder.parent, result)  # asking may end the process
    verdict, verified = _verify(folder, manifest, request, out, on_event=on_event, offline=offline)
    if verdict in ANOTHER_MODEL and BOUNDS[bounds][0] > 0:  # equal answers are claimed
        faults += (f"not the tuned model: {verified}",)
    seconds = time.perf_counter() - began
    update = {"seconds": seconds, "faults": faults, "verdict": verdict, "verified": verified}
    result = result.model_copy(update=update)
    _record(folder.parent, result)
    return result


def _format_of_bounds(request: ExportRequest, smallest: Smallest | None) -> str:
    """Return the format whose bounds an export is held to: f16, if no smaller file has passed its test."""
    return "gguf f16" if smallest is not None and smallest.chosen == "f16" else request.name


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
        chooser.refuse_if_nothing_can_be_shown()
    on_event(StageStarted(f"writing {out}"))
    if request.kind == "adapter":
        model = load(folder, device="cpu", offline=offline)
        write_folder(out, lambda half: write_adapter(model, folder, half, on_note=lambda text: on_event(Note(text))))
        return None
    model = merged(folder, manifest, offline=offline)
    if request.kind == "merged":
        write_folder(out, lambda half: write_merged(model, folder, half, dtype=request.dtype))
        return None
    if request.kind == "compressed-tensors":
        write_folder(out, compress(model, dtype=request.dtype))
        return None
    ids = _importance_rows(model, run, on_event, offline=offline) if quantized else []
    if chooser is not None:
        return write_smallest(model, folder, out, chooser, importance_rows=ids, offline=offline)
    name = run.name if folder.name == "model" else folder.name
    write_folder(
        out,
        lambda half: write_file(
            model, half, dtype=request.dtype, name=name, rows=ids, on_note=lambda text: on_event(Note(text))
        ),
    )
    return None


def _verify(
    folder: Path,
    manifest: ModelManifest,
    request: ExportRequest,
    out: Path,
    *,
    on_event: EventHandler,
    offline: bool,
) -> tuple[str | None, str]:
    """Return the verdict of `tunesmith verify` about the export, and its evidence or why there is no verdict."""
    run = folder.parent
    if not request.verify or manifest.family != "decoder" or (folder / HEAD).exists():
        return None, ""
    if not (run / CHALLENGE).is_file():
        return None, f"not verified (the run has no {CHALLENGE})"
    on_event(StageStarted("verifying the export with the challenge of the run"))
    target = out / GGUF if request.kind == "gguf" else out
    try:
        found = verify(read_challenge(run), str(target), on_event=lambda event: None, offline=offline)
    except Exception as error:  # of any engine: the export is written and compared
        return None, f"not verified ({briefly(error)})"
    return found.verdict, found.sentence


def _record(run: Path, result: Export) -> None:
    """Add an export to the report of its run, if there is one, in place of an earlier one in the same format."""
    if not (run / "report.json").exists():
        return
    report = read_report(run)
    exports = [*(earlier for earlier in report.exports if earlier.format != result.format), result]
    write_report(run, report.model_copy(update={"exports": exports}))


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


def _refusal(result: Export, kind: str, out: Path, *, finer: str | None) -> Refused:
    """Return the error of an export that differs; a GGUF file that could be used unnoticed is removed."""
    fix = f"use --dtype {finer}" if finer else "do not use it, and please report this"
    if kind == "compressed-tensors" and result.same_prompts == 1:
        fix = "use --format merged --dtype bf16"
    if kind == "gguf" and (not finer or result.same_prompts < 1):  # fewer bits are not the reason
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
        return lambda: llama_cpp(out / GGUF, positions=positions, thinks=thinks)
    if request.kind != "adapter":
        return lambda: Plain(out)
    options = manifest.technique.load_options()  # an adapter trained over a 4-bit base is compared over one
    return lambda: Plain(locate(manifest.base, offline=offline), adapter=out, options=options)


def _states(manifest: ModelManifest, request: ExportRequest, out: Path, *, offline: bool) -> States:
    """Return a function that computes pooled states with transformers, from the export."""
    if request.kind == "adapter":
        base = locate(manifest.base, offline=offline)
        options = manifest.technique.load_options()
        return lambda ids: pooled_states(base, ids, adapter=out, family=manifest.family, options=options)
    return lambda ids: pooled_states(out, ids, adapter=None, family=manifest.family, options=AS_THEY_ARE)
