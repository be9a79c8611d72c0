"""Rows in, a tuned model and its measured worth out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Example
from tunesmith.inference.folder import About, save_model
from tunesmith.inference.local import LocalModel
from tunesmith.model.checkpoint import write_folder
from tunesmith.model.policy import Policy
from tunesmith.recipe import Recipe, save_recipe
from tunesmith.report.schema import Report, read_report
from tunesmith.workflows.answers import Answers, Untuned, answer, gold, groups, question
from tunesmith.workflows.assemble import Measured, assemble
from tunesmith.workflows.prepare import Listener, Prepared, prepare
from tunesmith.workflows.run_folder import RunFolder, open_run
from tunesmith.workflows.train import Trained, train


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, its report, and whether it had been finished before."""

    folder: Path
    report: Report
    already: bool = False


def tune_recipe(
    recipe: Recipe,
    *,
    out: Path | None = None,
    listen: Listener,
    stop: Callable[[], bool] = lambda: False,
    offline: bool = False,
) -> Run:
    """Fine-tune as the recipe says, score base and tuned on the same test rows, write the run folder.

    Goes on with an unfinished run of the same recipe; a finished one is returned as it is.
    """
    folder = open_run(recipe, out)
    if folder.finished:
        return Run(folder.path, read_report(folder.path), already=True)
    if folder.begun:  # the same threads and dtype, or the weights would differ in their last bits
        recipe = recipe.model_copy(update={"machine": type(recipe.machine)(**folder.page()["machine"])})
    began = time.perf_counter()
    prepared = prepare(recipe, listen=listen, offline=offline)
    machine = prepared.machine
    folder.begin({"machine": {"device": machine.device, "dtype": machine.dtype, "threads": machine.threads}})
    save_recipe(prepared.recipe, folder.path / "recipe.yaml")
    base = _base_answers(prepared, folder, listen)
    trained = train(prepared, folder.path, listen=listen, stop=stop)
    model = LocalModel(trained.policy, prepared.template, prepared.recipe.objective, recipe.data.max_tokens)
    listen({"event": "stage", "text": "scoring the tuned model"})
    tuned = answer(model, _test(prepared))
    _save(prepared, model, folder.path)
    measured = Measured(prepared, trained, base, tuned, time.perf_counter() - began)
    _write_predictions(prepared, (base, tuned), folder.path)
    report = assemble(measured, name=folder.path.name)
    (folder.path / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    return Run(folder.path, report)


def _test(prepared: Prepared) -> Sequence[Example]:
    """The frozen test rows; without any, the validation rows."""
    split = prepared.loaded.split
    return split.test or split.validation


def _base_answers(prepared: Prepared, folder: RunFolder, listen: Listener) -> Answers:
    """The untuned model's answers, kept in the run folder so that a resumed run need not ask again."""
    kept = folder.path / "base.json"
    if kept.exists():
        return Answers(**json.loads(kept.read_text(encoding="utf-8")))
    listen({"event": "stage", "text": f"scoring {prepared.recipe.model} as it is"})
    base = prepared.base
    policy = Policy.over(base.network, family=base.family, reference=_no_reference)
    untuned = Untuned(base, policy, prepared.template, prepared.recipe.objective, prepared.recipe.data.max_tokens)
    split = prepared.loaded.split
    found = untuned.answer(train=split.train, validation=split.validation, test=_test(prepared))
    half = kept.with_suffix(".half")
    half.write_text(json.dumps(asdict(found)), encoding="utf-8")
    half.replace(kept)
    return found


def _no_reference() -> Any:
    raise AssertionError("the untuned model is its own reference")


def _save(prepared: Prepared, model: LocalModel, out: Path) -> None:
    """The tuned model in its folder, whole or not at all."""
    recipe = prepared.recipe
    about = About(
        base=recipe.model,
        fingerprint=prepared.base.fingerprint,
        family=prepared.base.family,
        objective=recipe.objective,
        technique=recipe.technique,
        template_hash=prepared.template.hash,
        limit=recipe.data.max_tokens,
        temperature=model.temperature,
    )
    write_folder(out / "model", lambda half: save_model(half, model, about))


def _write_predictions(prepared: Prepared, sides: tuple[Answers, Answers], out: Path) -> None:
    """Each test row with what was right and what both models said."""
    examples = _test(prepared)
    base, tuned = sides
    lines = []
    for i, (example, right) in enumerate(zip(examples, gold(examples), strict=True)):
        line: dict[str, Any] = {
            "where": example.where,
            "group": example.group,
            "question": question(example),
            "gold": right,
        }
        line |= {"base": base.given[i], "tuned": tuned.given[i]}
        if tuned.probabilities:
            line["probabilities"] = {label: round(p, 5) for label, p in tuned.probabilities[i].items()}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (out / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")


__all__ = ["Run", "Trained", "groups", "tune_recipe"]
