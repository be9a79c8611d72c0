"""Tuning from rows to report: prepare, evaluate the base, train, evaluate, save, report."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tunesmith.config import AnyObjective, Recipe, save_recipe, with_places
from tunesmith.config.recipe import Machine
from tunesmith.data.cpu_count import cores
from tunesmith.data.files import is_there, read_page, write_whole
from tunesmith.display import Display, Displayed
from tunesmith.errors import briefly
from tunesmith.evaluation.candidates import encoder_fingerprints
from tunesmith.evaluation.contamination import with_contamination_check
from tunesmith.evaluation.diagnostics import (
    SHUFFLED,
    base_general_ability,
    fit_calibration,
    general_window,
    not_measured,
    retention,
    shuffled_labels,
)
from tunesmith.evaluation.evaluators import SINGLE_TASK_MODEL, EvalSet, Evaluator, evaluator_for
from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.evaluators.multitask import PredictionsByTask
from tunesmith.evaluation.hard_negatives import with_rows_of_base
from tunesmith.evaluation.privacy import exposures, secret_scores, with_canaries
from tunesmith.evaluation.results import Retention
from tunesmith.evaluation.retention import GeneralAbility, general_nll, measure
from tunesmith.evaluation.teacher import GOLD, TEACHER, TEST_FILE, Teaching, with_teacher
from tunesmith.evaluation.thinking import ThinkingAnswers, answer_both_ways, no_ledger, thinking_ledger
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.identify import ModelManifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import save_model
from tunesmith.metrics.resampling import ALPHA, at_level
from tunesmith.models.loading.base_from_run import relative_to
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.models.loading.device import keep_freed_memory
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy
from tunesmith.models.world import alone, among, current_world, join, passes
from tunesmith.objectives.passages import PASSAGES
from tunesmith.phases import phase, timing
from tunesmith.pipelines.certify.certify import certificate_of
from tunesmith.pipelines.many_runs import LOCAL, check_place, each
from tunesmith.pipelines.plan.predict_run import predict_run, prediction_line
from tunesmith.pipelines.plan.report import CostPrediction
from tunesmith.pipelines.tune.build_report import BaselineSnapshot, RunResults, build_report, step_flops
from tunesmith.pipelines.tune.golden import environment_of
from tunesmith.pipelines.tune.golden import record as record_golden
from tunesmith.pipelines.tune.remote_run import copied
from tunesmith.pipelines.tune.run_clock import (
    BASE,
    CONTROLS,
    PREPARE,
    REPORT,
    TEXTS,
    TRAINING,
    TUNED,
    RunClock,
    numbered_phases,
    record,
)
from tunesmith.pipelines.tune.verdict_rows import choose_rows, pinned, score_tuned
from tunesmith.pipelines.verify.challenge import FILE as CHALLENGE
from tunesmith.pipelines.verify.chat import FILE as CHAT
from tunesmith.pipelines.verify.chat import contract_of
from tunesmith.pipelines.verify.make import challenge_of_run
from tunesmith.plugins import used
from tunesmith.report.formatting import reused_line
from tunesmith.report.html import write_reports
from tunesmith.report.schema import Report, read_report, write_report
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.mlm_head import train_mlm_head
from tunesmith.training.multitask import single_task_contexts
from tunesmith.training.prepare import TrainingContext, prepare, training_options
from tunesmith.training.replay import with_replay
from tunesmith.training.rewards import digests
from tunesmith.training.run_folder import (
    RunFolder,
    drop_checkpoints,
    exclusive_lock,
    open_run,
    task_dir,
)
from tunesmith.training.train import base_policy, check_reward_varies, train, untouched_policy


@dataclass(frozen=True, slots=True, repr=False)
class Run(Displayed):
    """A finished run."""

    folder: Path
    report: Report
    reused: bool = False  # it was finished before this call

    @property
    def already(self) -> bool:
        """Return `reused`, under its old name."""
        warnings.warn("Run.already is deprecated; use Run.reused", DeprecationWarning, stacklevel=2)
        return self.reused

    def display(self) -> Display:
        """Show the report under the folder of the run."""
        shown = self.report.display()
        page = (f"all results: {self.folder / 'report.html'}",)
        return replace(shown, title=shown.title.replace("Report", "Run", 1), lines=(*shown.lines, *page))


def tune_recipe(
    recipe: Recipe,
    *,
    out: Path | None = None,
    callbacks: Callbacks,
    offline: bool = False,
    on: str = LOCAL,
) -> Run:
    """Tune a model, compare it with its base on the same test rows, and write the run folder.

    Resumes an unfinished run of the same recipe. A finished run is not repeated. In each of several processes that
    `torchrun` started, this takes a share of the work; only the first one writes.

    Args:
        recipe: everything that defines the run.
        out: the run folder; by default a new one in `runs`.
        callbacks: observe and stop the run.
        offline: do not access the network.
        on: where the control runs are trained, see `many_runs.each`.

    Returns:
        The run with its report.

    Raises:
        OptionError: nothing can be trained there.
        TunesmithError: the recipe, the rows or the model cannot be used, or nothing can be learned.
        Interrupted: `callbacks.should_stop` returned true; the last finished step is saved.
    """
    check_place(on, controls=recipe.controls)
    world = join()
    folder = open_run(recipe, out)
    if not world.broadcast(folder.finished):
        lock = exclusive_lock(folder.path)
        with among(world), lock, copied(out if world.leads else None, callbacks) as callbacks:
            folder = open_run(recipe, out)  # another run may have finished it before this one got the lock
            if not world.broadcast(folder.finished):
                return Run(folder.path, _run_steps(recipe, folder, callbacks, offline=offline, on=on))
    _reward_digests(recipe, folder, callbacks.on_event)
    with world.first():
        if not (folder.path / "report.html").exists():  # the process was killed between the report and its page
            write_reports(folder.path)
        drop_checkpoints(folder.path)
    return Run(folder.path, read_report(folder.path), reused=True)


def _run_steps(recipe: Recipe, folder: RunFolder, callbacks: Callbacks, *, offline: bool, on: str) -> Report:
    """Run all steps. Each one reuses what it finds in the run folder, so that an interrupted run resumes."""
    started, resumed = time.perf_counter(), folder.started
    clock, world = RunClock(callbacks.on_event, numbered_phases(recipe)), current_world()
    with timing(clock.phases):
        results = _results(recipe, folder, replace(callbacks, on_event=clock), clock, offline=offline, on=on)
        if results is None:
            world.barrier()
            return read_report(folder.path)
        results = replace(results, clock=clock, resumed=resumed)
        clock.start(REPORT)
        with phase("saving"):
            records = _save(results, folder)
            _save_challenge(results, folder, records, clock)

        # The run is finished once report.json exists; what is written later would be missing after a kill.
        level = results.scored_rows.level if results.scored_rows else ALPHA
        with phase("report"), at_level(level):
            report = build_report(results, name=folder.path.name, seconds=time.perf_counter() - started)
            write_report(folder.path, report)
            write_reports(folder.path)
            drop_checkpoints(folder.path)
    world.barrier()
    if world.size == 1:  # later forecasts are those of one process
        record(clock, results.prepared, seconds=time.perf_counter() - started, resumed=resumed)
    return report


@passes()
def _results(
    recipe: Recipe, folder: RunFolder, callbacks: Callbacks, clock: RunClock, *, offline: bool, on: str
) -> RunResults | None:
    """Evaluate the base model, train it, and evaluate it again; of several processes, the first has the results."""
    on_event, world = callbacks.on_event, current_world()
    clock.start(PREPARE)

    # Prepare: read and encode the rows, load the base model, and record what the run must resume with.
    machine = recipe.machine
    rewards = _reward_digests(recipe, folder, on_event)
    with phase("loading"):
        prepared = prepare(folder.pinned(recipe), on_event=on_event, offline=offline, pinned=folder.started)
        recipe, base, world = prepared.recipe, prepared.base, current_world()
        environment = _start(prepared, folder, rewards, machine)
        prepared = with_canaries(with_contamination_check(prepared, on_event=on_event, offline=offline))
    # What is kept in files is computed by the first process and read by the others.
    with world.first():
        prepared = prepared.map_tasks(
            lambda name, task: with_rows_of_base(task, task_dir(folder.path, name), on_event=on_event)
        )
        prepared, teaching = with_teacher(prepared, folder.path, on_event=on_event, offline=offline)
        with phase("model check"):
            certificate = certificate_of(base, on_event=on_event)
        prepared = choose_rows(prepared, folder.path, clock, timed=not world.lockstep)
        prediction = _predict(prepared, folder.path, clock) if world.leads and not world.lockstep else None
        if TEXTS in clock.names:
            clock.start(TEXTS)
            prepared = prepare_texts(prepared, folder.path, callbacks, offline=offline)

    # Evaluate the base model before any of its parameters changes.
    evaluator = evaluator_for(EvalSet.of(prepared))
    snapshot = _evaluate_base(prepared, folder, evaluator, clock)
    clock.start(CONTROLS)
    controls = _run_controls(prepared, teaching, folder.path, callbacks, offline=offline, on=on)

    # Train.
    clock.start(TRAINING)
    gate = _general_text_gate(prepared, snapshot.general)
    trained = train(prepared, folder.path, callbacks=replace(callbacks, gate_violation=gate))

    # Evaluate the tuned model on the same rows.
    model = _local_model(prepared, trained.policy)
    clock.start(TUNED)
    with phase("test scoring"), keep_freed_memory():
        if world.size == 1:
            record_golden(trained, folder.path, environment)
        on_event(StageStarted(f"{len(prepared.test)} test rows"))
        fit_calibration(prepared, model)
        scored = score_tuned(prepared, model, base=snapshot.predictions, controls=controls, out=folder.path)
        clock.scored = len(scored.prepared.test) / len(prepared.test)
        secrets = secret_scores(prepared, trained.policy)
    general = _general_after(prepared, trained.policy, snapshot.general, on_event)
    ledger = None
    if snapshot.thinking is not None:
        with phase("thinking after"):
            ledger = thinking_ledger(prepared, base=snapshot.thinking, tuned=_think(prepared, model, on_event))
    trained.policy.gather_weights()
    if not world.leads and not world.lockstep:
        return None
    with phase("diagnostics"), alone(), at_level(scored.extent.level if scored.extent else ALPHA):
        diagnostics = scored.evaluator.diagnose(scored.prepared, model, base=scored.base, tuned=scored.tuned)
        flops = step_flops(trained)
    if not world.leads:
        return None
    return RunResults(
        prepared=scored.prepared,
        trained=trained,
        model=model,
        evaluator=scored.evaluator,
        base=scored.base,
        tuned=scored.tuned,
        flops=flops,
        controls=scored.controls,
        diagnostics=diagnostics,
        retention=general,
        canaries=exposures(snapshot.secrets, secrets),
        ledger=ledger,
        prediction=prediction,
        certificate=certificate,
        teaching=teaching,
        scored_rows=scored.extent,
        reused=snapshot.reused,
    )


def _start(prepared: TrainingContext, folder: RunFolder, rewards: dict[str, str], asked: Machine) -> dict[str, str]:
    """Record what the run must resume with, and the recipe with the machine asked for; return its environment."""
    recipe = prepared.recipe
    known = folder.page() if folder.started else {}
    environment: dict[str, str] = known.get("environment") or environment_of(prepared.machine)
    facts = {"audit": recipe.data.audit, "rewards": rewards, "environment": environment}
    folder.start(recipe, machine=prepared.machine, base=prepared.base.fingerprint, **facts)
    if current_world().leads and not (written := folder.path / "recipe.yaml").exists():
        placed = with_places(recipe, rows=str, code=str, model=partial(_beside, folder.path))
        save_recipe(placed.model_copy(update={"machine": asked}), written)
    return environment


def _beside(folder: Path, name: str) -> str:
    """Return the path of a model next to a run folder or below it as one that stays right if both are moved."""
    path = Path(name).expanduser()
    beside = is_there(path) and path.resolve().is_relative_to(folder.resolve().parent)
    return relative_to(folder, name) if beside else name


def _predict(prepared: TrainingContext, out: Path, clock: RunClock) -> CostPrediction | None:
    """Report the predicted memory and time of the run, and let its clock compare with them."""
    clock(StageStarted("estimating time and memory"))
    with phase("forecast"):
        found = predict_run(prepared, out, measured=clock.phases.seconds)
    if found is None:
        return None
    prediction, forecast = found
    clock(Note(prediction_line(prediction, forecast)))
    clock.expect(forecast)
    return prediction


def _save(results: RunResults, folder: RunFolder) -> list[dict[str, Any]]:
    """Save the model and the predictions; return the latter by row."""
    prepared, model, evaluator = results.prepared, results.model, results.evaluator
    recipe, base = prepared.recipe, prepared.base
    objective = model.objective.without_rows()
    manifest = ModelManifest(
        base=base.pinned or recipe.model,
        fingerprint=base.fingerprint,
        family=base.family,
        objective=objective.with_models(partial(relative_to, folder.path / "model")),
        encoders=encoder_fingerprints(objective, where=str(folder.path), offline=True),
        technique=recipe.technique,
        template_hash=prepared.template.hash,
        limit=recipe.data.max_tokens,
        temperature=model.temperature,
        threshold=model.threshold,
        temperatures=dict(model.temperatures),
        thresholds=dict(model.thresholds),
        plugins=used(recipe),
    )
    write_folder(folder.path / "model", lambda path: save_model(path, model, manifest))
    if (searching := recipe.objective.searching) is not None:
        rows = searching.without_rows().for_rows(prepared.loaded.split.examples())
        write_whole(folder.path / PASSAGES, rows.passages_file())
    records = evaluator.to_rows({"base": results.base, "tuned": results.tuned})
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(folder.path / "predictions.jsonl", lines)
    return records


@keep_freed_memory()
def _save_challenge(
    results: RunResults, folder: RunFolder, records: list[dict[str, Any]], on_event: EventHandler
) -> None:
    """Write what `tunesmith verify` needs, for a model that answers in words; a failure is a note."""
    prepared, path = results.prepared, folder.path
    if not prepared.recipe.challenge or prepared.base.family != "decoder":
        return
    unchanged = {row["where"] for row in records if "tuned" in row and row["tuned"] == row["base"]}
    try:
        challenge = challenge_of_run(prepared, results.model, name=path.name, unchanged=unchanged)
    except Exception as error:  # whatever happens here, the model is saved and its report follows
        on_event(Note(f"no challenge for `tunesmith verify`: {briefly(error)}"))
        challenge = None
    write_whole(path / CHAT, contract_of(prepared.template).model_dump_json(indent=1))
    if challenge:
        write_whole(path / CHALLENGE, challenge.model_dump_json(indent=1))


def _reward_digests(recipe: Recipe, folder: RunFolder, on_event: EventHandler) -> dict[str, str]:
    """Return the digests of the reward files as the run started with them, and report files that have changed."""
    recorded, changed = folder.since("rewards", digests([*recipe.objective.rewards, recipe.teacher.model]))
    for name in changed:
        fix = "to train with the new file, give another --out"
        what = "teacher" if name == recipe.teacher.model else "file of the reward"
        on_event(Note(f"{name}: the {what} has changed since this run started; {fix}"))
    return recorded


def prepare_texts(prepared: TrainingContext, out: Path, callbacks: Callbacks, *, offline: bool) -> TrainingContext:
    """Add what learning from texts needs: general rows, and for an encoder a masked-LM head.

    Args:
        prepared: the run.
        out: its folder, where both are kept.
        callbacks: observe and stop the training of the head.
        offline: do not access the network.
    """
    if prepared.subtasks:
        return prepared.map_tasks(
            lambda name, task: prepare_texts(task, task_dir(out, name), callbacks, offline=offline)
        )
    if prepared.recipe.objective.produces != "likelihood":
        return prepared
    out.mkdir(parents=True, exist_ok=True)
    with phase("replay samples"):
        prepared = with_replay(prepared, out, on_event=callbacks.on_event, offline=offline)
    if prepared.base.family == "encoder":
        with phase("masked-LM head", whole=True):
            prepared = replace(prepared, head=train_mlm_head(prepared, out, callbacks=callbacks))
    return prepared


@keep_freed_memory()
def _evaluate_base(
    prepared: TrainingContext, folder: RunFolder, evaluator: Evaluator[Any], clock: RunClock
) -> BaselineSnapshot:
    """Return the predictions and the general ability of the base model, computed once for each run folder."""
    path, world = folder.path / "before.json", current_world()
    if world.broadcast(path.exists()):
        return read_page(path, BaselineSnapshot)
    with phase("base scoring"):
        if prepared.recipe.objective.samples_completions:  # first, because generating all test answers takes long
            check_reward_varies(prepared, base_policy(prepared), on_event=clock)
        clock.start(BASE)
        policy = untouched_policy(prepared)
        predictions = evaluator.evaluate_base(prepared, policy, folder.path)
    if not not_measured(prepared):
        clock(StageStarted("general ability of the base model"))
    with phase("general ability before"):
        general = base_general_ability(prepared, policy)
    thinking = None
    if not no_ledger(prepared):
        with phase("thinking before"):
            policy.head = None  # of an evaluator's probe
            thinking = _think(prepared, _local_model(prepared, policy), clock)
    snapshot = BaselineSnapshot(
        predictions=evaluator.to_json(predictions),
        general=general,
        secrets=secret_scores(prepared, policy),
        thinking=thinking,
        reused=clock.phases.reused,
    )
    if snapshot.reused:
        clock(Note(reused_line(snapshot.reused)))
    if world.leads:
        write_whole(path, snapshot.model_dump_json())
    return snapshot


@keep_freed_memory()
def _general_after(
    prepared: TrainingContext, policy: Policy, before: GeneralAbility | None, on_event: EventHandler
) -> Retention | None:
    """Compare the general ability of the tuned model with that of the base model, if that was measured."""
    if before is None:
        return None
    on_event(StageStarted("general ability of the tuned model"))
    with phase("general ability after"):
        window, extent = general_window(prepared), prepared.recipe.retention
        return retention(before, measure(policy, prepared.template, window=window, extent=extent))


def _think(prepared: TrainingContext, model: LocalModel, on_event: EventHandler) -> ThinkingAnswers:
    """Answer the rows of the thinking ledger with and without thoughts."""
    on_event(StageStarted(f"thinking ledger: {prepared.recipe.ledger.rows} rows with and without thoughts"))
    return answer_both_ways(prepared, model.at(next(iter(prepared.tasks))))


def _run_controls(
    prepared: TrainingContext, teaching: Teaching | None, out: Path, callbacks: Callbacks, *, offline: bool, on: str
) -> dict[str, Any]:
    """Return the predictions of the control runs: on shuffled labels, or of several tasks one model for each.

    With a teacher, also those of the teacher and of the model tuned without it.
    """
    controls: dict[str, Any] = {}
    if teaching is not None:
        with phase("distillation", whole=True):
            with current_world().first(), alone():  # one process asks, the others read what it has kept
                answers = teaching.teacher.answers(prepared.test, out / TEST_FILE)
            teaching.teacher.unload()
            gold = {name: getattr(teaching.gold, name) for name in ("recipe", "train", "facts", "teacher")}
            what = "without the teacher, on gold rows alone, for as many steps"
            controls = {
                TEACHER: AnswerPredictions(answers),
                GOLD: _tuned_beside(replace(prepared, **gold), out / "gold", callbacks, what),
            }
    if not prepared.recipe.controls:
        return controls
    names = list(prepared.tasks) if prepared.subtasks else [""]
    here = partial(_run_control, prepared, out, callbacks)
    work = here if on == LOCAL else partial(control_in_task, prepared.recipe, out.absolute(), offline)
    threads, stop = prepared.recipe.machine.threads or cores(), callbacks.should_stop
    with phase("controls", whole=True):
        parts = dict(each(work, names, on=on, threads=threads, stop=(lambda: False) if on == LOCAL else stop))
    if len(parts) < len(names):
        raise Interrupted("stopped; finished runs are kept")
    return controls | ({SINGLE_TASK_MODEL: PredictionsByTask(parts)} if prepared.subtasks else {SHUFFLED: parts[""]})


def control_in_task(recipe: Recipe, out: Path, offline: bool, name: str) -> Any:
    """Return the predictions of a control run in a separate process; one that was lost resumes.

    Args:
        recipe: the recipe, with the machine of the run.
        out: the run folder.
        offline: do not access the network.
        name: task that is tuned alone; empty for shuffled labels.
    """
    callbacks = Callbacks(lambda event: None)
    prepared = prepare(recipe, on_event=callbacks.on_event, offline=offline)
    prepared = prepared.map_tasks(
        lambda task, context: with_rows_of_base(context, task_dir(out, task), on_event=callbacks.on_event)
    )
    prepared, _ = with_teacher(prepared, out, on_event=callbacks.on_event, offline=offline)
    prepared = pinned(out).of(prepared)
    return _run_control(prepare_texts(prepared, out, callbacks, offline=offline), out, callbacks, name)


def _run_control(prepared: TrainingContext, out: Path, callbacks: Callbacks, name: str) -> Any:
    """Return the predictions of a model that is tuned on one task alone, or without a name on shuffled labels."""
    control = single_task_contexts(prepared)[name] if name else shuffled_labels(prepared)
    folder = out / "alone" / name if name else out / "control"
    what = f"{name} alone, on as many of its rows" if name else "shuffled labels"
    return _tuned_beside(control, folder, callbacks, what)


def _tuned_beside(control: TrainingContext, folder: Path, callbacks: Callbacks, what: str) -> Any:
    """Return the predictions of a model that is tuned in a folder for comparison."""
    callbacks.on_event(StageStarted(f"control run: {what}"))
    folder.mkdir(parents=True, exist_ok=True)
    # A second base model: the network of the run itself must stay unchanged.
    options = training_options(control.recipe, control.machine)
    control = replace(control, base=load_base(control.recipe.model, options=options, offline=True))
    policy = train(control, folder, callbacks=callbacks).policy
    callbacks.on_event(StageStarted(f"{len(control.test)} test rows"))
    return evaluator_for(EvalSet.of(control)).predict(_local_model(control, policy))


def _general_text_gate(prepared: TrainingContext, general: GeneralAbility | None) -> Callable[[Policy], str | None]:
    """Return a function that reports a policy whose loss on general text rose by more than the recipe allows."""
    bound = prepared.recipe.gates.max_general_nats
    if bound is None or general is None or (base_nll := general.nll) is None:
        return lambda policy: None
    window, texts = general_window(prepared), prepared.recipe.retention.texts

    def violation(policy: Policy) -> str | None:
        rise = general_nll(policy, prepared.template, window=window, texts=texts) - base_nll
        return f"general-text loss rose by {rise:.3f} nats/token, at most {bound} is allowed" if rise > bound else None

    return violation


def _local_model(prepared: TrainingContext, policy: Policy) -> LocalModel:
    """Return a model that answers with a policy."""
    objective = cast(AnyObjective, prepared.recipe.objective.inference_objective())
    return LocalModel(policy, prepared.template, objective, prepared.recipe.data.max_tokens)
