"""Rows in, a tuned model and its measured worth out."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from tunesmith.config import AnyObjective, Recipe, save_recipe
from tunesmith.data.files import read_page, write_whole
from tunesmith.evaluation.contamination import with_contamination_check
from tunesmith.evaluation.diagnostics import (
    SHUFFLED,
    base_general_ability,
    fit_calibration,
    general_window,
    retention,
    shuffled_labels,
)
from tunesmith.evaluation.evaluators import SINGLE_TASK_MODEL, EvalSet, Evaluator, MultitaskEvaluator, evaluator_for
from tunesmith.evaluation.retention import general_nll, measure
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import ModelManifest, save_model
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.models.loading.load import LoadOptions, load_base
from tunesmith.models.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.pipelines.plan.profile import predict_cost
from tunesmith.pipelines.tune.build_report import BaselineSnapshot, RunResults, build_report
from tunesmith.report.html import write_reports
from tunesmith.report.schema import Report, read_report
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.mlm_head import train_mlm_head
from tunesmith.training.multitask import single_task_contexts
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.replay import with_replay
from tunesmith.training.rewards import digests
from tunesmith.training.run_folder import RunFolder, exclusive_lock, open_run, task_dir
from tunesmith.training.train import TrainResult, base_policy, check_reward_varies, train


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, its report, and whether it had been finished before."""

    folder: Path
    report: Report
    reused: bool = False

    @property
    def already(self) -> bool:
        """Return `reused`, under its old name."""
        warnings.warn("Run.already is deprecated; use Run.reused", DeprecationWarning, stacklevel=2)
        return self.reused


def tune_recipe(
    recipe: Recipe,
    *,
    out: Path | None = None,
    callbacks: Callbacks,
    offline: bool = False,
) -> Run:
    """Fine-tune as the recipe says, score base and tuned on the same test rows, write the run folder.

    Goes on with an unfinished run of the same recipe; a finished one is returned as it is.
    """
    folder = open_run(recipe, out)
    if not folder.finished:
        with exclusive_lock(folder.path):
            folder = open_run(recipe, out)  # as a process left it that was at work until now
            if not folder.finished:
                return Run(folder.path, _tuned(recipe, folder, callbacks, offline=offline))
    _rewards(recipe, folder, callbacks.on_event)
    if not (folder.path / "report.html").exists():  # the machine stopped between the report and its page
        write_reports(folder.path)
    return Run(folder.path, read_report(folder.path), reused=True)


def _tuned(recipe: Recipe, folder: RunFolder, callbacks: Callbacks, *, offline: bool) -> Report:
    """The run from its last checkpoint, or its beginning, to its reports."""
    on_event, began = callbacks.on_event, time.perf_counter()
    rewards = _rewards(recipe, folder, on_event)
    prepared = prepare(_as_begun(recipe, folder) if folder.begun else recipe, on_event=on_event, offline=offline)
    _begin(folder, prepared, rewards)
    save_recipe(prepared.recipe, folder.path / "recipe.yaml")
    prepared = with_contamination_check(prepared, on_event=on_event, offline=offline)
    prepared = _with_text(prepared, folder.path, callbacks, offline=offline)
    prediction = predict_cost(prepared, folder.path, on_event=on_event)
    yardstick = evaluator_for(EvalSet.of(prepared))
    before = _before(prepared, folder, yardstick, on_event)
    controls = _controls(prepared, folder.path, yardstick, callbacks) if prepared.recipe.controls else {}
    trained = train(prepared, folder.path, callbacks=replace(callbacks, gate_violation=_gate(prepared, before)))
    measured = _measured(yardstick, prepared, trained, before, on_event)
    measured = replace(measured, controls=controls, prediction=prediction)
    about = _about(prepared, measured.model)
    write_folder(folder.path / "model", lambda half: save_model(half, measured.model, about))
    _write_predictions(measured, folder.path)
    report = build_report(measured, name=folder.path.name, seconds=time.perf_counter() - began)
    write_whole(folder.path / "report.json", report.model_dump_json(indent=1))
    write_reports(folder.path)
    return report


def _rewards(recipe: Recipe, folder: RunFolder, on_event: EventHandler) -> dict[str, str]:
    """Digests of the files of its rewards, as they were when the run began; one that is another now is told."""
    named = recipe.objective.rewards
    kept, changed = folder.since("rewards", digests(named))
    for name in changed:
        cure = "to train by what it says now, give another --out"
        on_event(Note(f"{name}: the reward's file has changed since this run began; {cure}"))
    return kept


def _begin(folder: RunFolder, prepared: TrainingContext, rewards: dict[str, str]) -> None:
    """Write down what a run goes on with. Raises CheckpointError where it began over a base that was changed since."""
    base, machine = prepared.base.fingerprint, prepared.machine
    folder.check_base(prepared.recipe.model, base)
    on = {"device": machine.device, "dtype": machine.dtype, "threads": machine.threads}
    folder.begin({"machine": on, "audit": prepared.recipe.data.audit, "base": base, "rewards": rewards})


def _as_begun(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe on the threads and in the dtype that the run began with: its last bits depend on both."""
    page = folder.page()
    data = recipe.data.model_copy(update={"audit": page.get("audit", recipe.data.audit)})
    return recipe.model_copy(update={"machine": type(recipe.machine)(**page["machine"]), "data": data})


def _with_text(prepared: TrainingContext, out: Path, callbacks: Callbacks, *, offline: bool) -> TrainingContext:
    """What learning from texts needs before it begins: general rows, and an encoder's head for hidden words."""
    if prepared.subtasks:
        return prepared.map_tasks(lambda name, task: _with_text(task, task_dir(out, name), callbacks, offline=offline))
    if not isinstance(prepared.recipe.objective, Domain):
        return prepared
    out.mkdir(parents=True, exist_ok=True)
    found = with_replay(prepared, out, on_event=callbacks.on_event, offline=offline)
    return (
        replace(found, head=train_mlm_head(found, out, callbacks=callbacks))
        if found.base.family == "encoder"
        else found
    )


def _before(
    prepared: TrainingContext, folder: RunFolder, yardstick: Evaluator[Any], on_event: EventHandler
) -> BaselineSnapshot:
    """The untuned model, kept in the run folder so that a resumed run need not ask again."""
    kept = folder.path / "before.json"
    if kept.exists():
        return read_page(kept, BaselineSnapshot)
    if prepared.recipe.objective.samples_completions:  # an untuned model that answers all test rows takes its time
        check_reward_varies(prepared, base_policy(prepared), on_event=on_event)
    on_event(StageStarted(f"scoring {prepared.recipe.model} as it is"))
    base = prepared.base
    policy = Policy.over(base.network, family=base.family)
    said = TypeAdapter(yardstick.shape).dump_python(yardstick.evaluate_base(prepared, policy, folder.path), mode="json")
    found = BaselineSnapshot(said=said, general=base_general_ability(prepared, policy))
    write_whole(kept, found.model_dump_json())
    return found


def _gate(prepared: TrainingContext, before: BaselineSnapshot) -> Callable[[Policy], str | None]:
    """Return a function that reports a policy whose loss on general text rose by more than the recipe allows."""
    bound, general = prepared.recipe.gates.max_general_nats, before.general
    if bound is None or general is None:
        return lambda policy: None
    window = general_window(prepared)

    def violation(policy: Policy) -> str | None:
        with policy.full_precision():  # the report judges the gate at the end
            rise = general_nll(policy, prepared.template, window=window) - general.nll
        return f"general-text loss rose by {rise:.3f} nats/token, at most {bound} is allowed" if rise > bound else None

    return violation


def _controls(prepared: TrainingContext, out: Path, yardstick: Evaluator[Any], callbacks: Callbacks) -> dict[str, Any]:
    """What the same recipe says after shuffled answers, over a base of its own; of several tasks, what each says
    that was tuned alone on as many of its own rows."""
    if isinstance(yardstick, MultitaskEvaluator):
        parts = single_task_contexts(prepared)
        return {SINGLE_TASK_MODEL: yardstick.gathered(lambda name: _alone(parts[name], name, out, callbacks))}
    callbacks.on_event(StageStarted("control: the same on shuffled answers"))
    folder = out / "control"
    folder.mkdir(exist_ok=True)
    dealt = _over_fresh_base(shuffled_labels(prepared))
    return {SHUFFLED: yardstick.predict(_model(prepared, train(dealt, folder, callbacks=callbacks).policy))}


def _alone(part: TrainingContext, name: str, out: Path, callbacks: Callbacks) -> LocalModel:
    """One task of several tuned by itself."""
    callbacks.on_event(StageStarted(f"{name} alone, on as many of its rows"))
    folder = out / "alone" / name
    folder.mkdir(parents=True, exist_ok=True)
    return _model(part, train(_over_fresh_base(part), folder, callbacks=callbacks).policy)


def _over_fresh_base(prepared: TrainingContext) -> TrainingContext:
    """The same run over a base of its own."""
    options = LoadOptions("float32", prepared.machine.device, prepared.recipe.technique.load_options().quantize)
    return replace(prepared, base=load_base(prepared.recipe.model, options=options, offline=True))


def _model(prepared: TrainingContext, policy: Policy) -> LocalModel:
    """A policy that answers as the recipe asks."""
    recipe = prepared.recipe
    objective = cast(AnyObjective, recipe.objective.inference_objective())
    return LocalModel(policy, prepared.template, objective, recipe.data.max_tokens)


def _measured(
    yardstick: Evaluator[Any],
    prepared: TrainingContext,
    trained: TrainResult,
    before: BaselineSnapshot,
    on_event: EventHandler,
) -> RunResults:
    """What the tuned model says, and all that is measured on it beside the base."""
    on_event(StageStarted("scoring the tuned model"))
    general = measure(trained.policy, prepared.template, window=general_window(prepared)) if before.general else None
    kept = retention(before.general, general) if before.general and general else None
    model = _model(prepared, trained.policy)
    fit_calibration(prepared, model)
    base, tuned = TypeAdapter(yardstick.shape).validate_python(before.said), yardstick.predict(model)
    worth = yardstick.diagnose(prepared, model, base=base, tuned=tuned)
    return RunResults(prepared, trained, model, yardstick, base=base, tuned=tuned, worth=worth, retention=kept)


def _about(prepared: TrainingContext, model: LocalModel) -> ModelManifest:
    """The page that goes with the tuned model."""
    recipe, objective = prepared.recipe, model.objective
    return ModelManifest(
        base=recipe.model,
        fingerprint=prepared.base.fingerprint,
        family=prepared.base.family,
        objective=objective.without_rows(),
        technique=recipe.technique,
        template_hash=prepared.template.hash,
        limit=recipe.data.max_tokens,
        temperature=model.temperature,
        threshold=model.threshold,
        temperatures=dict(model.temperatures),
        thresholds=dict(model.thresholds),
    )


def _write_predictions(run: RunResults, out: Path) -> None:
    """Each test row with what was right and what both models said to it."""
    lines = run.yardstick.to_rows({"base": run.base, "tuned": run.tuned})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(out / "predictions.jsonl", text)
