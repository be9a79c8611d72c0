"""Functions of the commands that read a recipe: `plan`, `tune`, `compare`, `learning_curve`, `rlhf`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api import Section, changes_of, python_words, recipe_of, reporting, words

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.events import EventHandler
    from tunesmith.pipelines.compare.report import Comparison
    from tunesmith.pipelines.learning_curve.report import LearningCurveReport
    from tunesmith.pipelines.plan.report import PlanReport
    from tunesmith.pipelines.rebase import Rebase
    from tunesmith.pipelines.replay import Replay
    from tunesmith.pipelines.rlhf.report import LoopPlan, LoopReport
    from tunesmith.pipelines.tune.preview import Preview
    from tunesmith.pipelines.tune.tune import Run
    from tunesmith.training.callbacks import Callback


@python_words
def plan(
    source: str | Path | Recipe,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    data: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    quick: bool = False,
    processes: int = 1,
    gpu: str = "",
    gpus: int | Sequence[int] = (),
    machines: int = 1,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
    **more: Any,
) -> PlanReport:
    """Estimate memory and time of each technique and recommend one.

    >>> import tunesmith
    >>> plan = tunesmith.plan("reviews.jsonl", model="minilm-l6", quick=True)  # doctest: +SKIP
    >>> plan.recommendation.technique  # doctest: +SKIP
    'full'

    Args:
        source: a recipe, a recipe file, or a file of rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        data: keys of the section `data`, such as `{"test": 0.2}`.
        schedule: keys of the section `schedule`, such as `{"epochs": 2}`.
        settings: further recipe keys, nested or dotted.
        quick: use analytic estimates only, without timing any steps.
        processes: number of processes that share the run on this machine.
        gpu: plan on paper for GPUs that are not here: `a100`, `h100`, `h200` or `b200`; the estimates are in `.paper`.
        gpus: number of GPUs on each machine, one or several; default 1, 8 and 64, or 8 of each of several machines.
        machines: number of machines.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event, see `tunesmith.events`.
        **more: further recipe keys.

    Returns:
        The estimates, with `.options` and `.recommendation` (None if nothing fits into memory).

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    from tunesmith.pipelines.plan.gpus import gpu_of
    from tunesmith.training.read import check_rows, check_settings

    numbers = [gpus] if isinstance(gpus, int) else gpus
    gpu = gpu_of(gpu, numbers, machines)
    named = {"model": model, "objective": objective, "technique": technique, "data": data, "schedule": schedule}
    with reporting(progress, callback) as callbacks:
        changes = changes_of(settings, more, **named)
        recipe = recipe_of(source, changes, on_event=callbacks.on_event, offline=offline, check=check_settings)
        check_rows(recipe, on_event=callbacks.on_event, offline=offline)
        if gpu:
            from tunesmith.pipelines.plan.on_paper import plan_on_paper

            return plan_on_paper(
                recipe, gpu=gpu, gpus=numbers, machines=machines, on_event=callbacks.on_event, offline=offline
            )
        from tunesmith.pipelines.plan.plan import plan_recipe  # after the checks, because it imports torch

        return plan_recipe(recipe, on_event=callbacks.on_event, timed=not quick, processes=processes, offline=offline)


@python_words
def preview(
    source: str | Path | Recipe,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    data: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    offline: bool = False,
    **more: Any,
) -> Preview:
    """Show the first training rows with their learned tokens, as `tunesmith tune --dry-run` does.

    >>> import tunesmith
    >>> shown = tunesmith.preview("reviews.jsonl", model="minilm-l6")  # doctest: +SKIP
    >>> shown.facts.longest  # doctest: +SKIP
    41

    Args:
        source: a recipe, a recipe file, or a file of rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        data: keys of the section `data`.
        schedule: keys of the section `schedule`.
        settings: further recipe keys, nested or dotted.
        offline: do not access the network.
        **more: further recipe keys.

    Returns:
        The preview, with `.rows`, `.facts`, `.problems` and the complete `.recipe`.

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    named = {"model": model, "objective": objective, "technique": technique, "data": data, "schedule": schedule}
    with reporting(progress=False) as callbacks:
        changes = changes_of(settings, more, **named)
        recipe = recipe_of(source, changes, on_event=callbacks.on_event, offline=offline)
    from tunesmith.pipelines.tune.preview import preview as preview_rows  # after the recipe, because it imports torch

    return preview_rows(recipe, offline=offline)


@python_words
def tune(
    source: str | Path | Recipe | None = None,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    data: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    gates: Mapping[str, Any] | None = None,
    replay: Mapping[str, Any] | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    offline: bool = False,
    on: str = "local",
    verdict_minutes: float | str | None = None,
    progress: bool = True,
    callback: EventHandler | None = None,
    callbacks: Sequence[Callback] = (),
    **more: Any,
) -> Run:
    """Fine-tune a model and score base and tuned model on the same held-out rows.

    Resumes an unfinished run of the same recipe. A finished run is not repeated.

    >>> import tunesmith
    >>> run = tunesmith.tune("reviews.jsonl", model="minilm-l6", technique="full",
    ...                      schedule={"epochs": 1}, progress=False)
    >>> run.report.task.metric
    'accuracy'
    >>> model = tunesmith.load(run.folder)
    >>> model.classify("great phone").label in ("good", "bad")
    True

    Args:
        source: a file of rows, a recipe file, or a `Recipe`.
        model: alias, Hub id, folder, GGUF file or finished run; default `minilm-l6` for labels, otherwise
            `smollm2-135m`.
        objective: a kind such as `classify`, or a mapping with its keys; by default the columns decide.
        technique: a kind such as `lora`, or a mapping such as `{"kind": "lora", "rank": 8}`.
        data: keys of the section `data`, such as `{"test": 0.2, "group": "user"}`.
        schedule: keys of the section `schedule`, such as `{"epochs": 2, "learning_rate": 1e-4}`.
        gates: quality gates, such as `{"max_general_nats": 0.05}`; see `run.report.broken_gates`.
        replay: general rows mixed in, such as `{"share": 0.1}`.
        seed: seed of all random choices.
        settings: further recipe keys, nested or dotted: `{"machine.threads": 2}`.
        out: run folder or its URL; default `runs/NAME` with a name of data, objective, technique and model.
        force: overwrite an earlier run in this folder, and continue despite severe data errors.
        offline: do not access the network.
        on: where the control runs are trained: `local`, `ray`, or `ray://HOST:PORT`.
        verdict_minutes: score as many test rows as take this time; `"all"`: every one.
        progress: show progress in the terminal or notebook.
        callback: receives every progress event, see `tunesmith.events`.
        callbacks: objects derived from `tunesmith.Callback`, which receive the events and may stop the run.
        **more: further recipe keys, or their names in other trainers (`lora_r=8`).

    Returns:
        The finished run with `.folder` and `.report`; in a script that `torchrun` started, in every process.

    Raises:
        TunesmithError: wrong input, refused data, or a model that cannot be loaded.
    """
    from tunesmith.models.world import started_as
    from tunesmith.pipelines.tune.remote_run import local_run
    from tunesmith.training.read import check_rows, check_settings

    callback, source = _former_parameters(more, callback, source)
    named = {"model": model, "objective": objective, "technique": technique, "data": data, "schedule": schedule}
    verdict = {"minutes": verdict_minutes}
    changes = changes_of(settings, more, **named, gates=gates, replay=replay, seed=seed, verdict=verdict)
    folder = local_run(None if out is None else Path(out))
    leads = started_as()[0] == 0  # of several processes, the first one reports and deletes
    with reporting(progress and leads, callback if leads else None) as shown:
        functions = shown.with_also(callbacks)
        changes += ["data.audit=note"] if force else []
        check = partial(check_settings, out=folder, folder=not force)
        recipe = recipe_of(source, changes, on_event=functions.on_event, offline=offline, check=check)
        # Wrong rows are reported before torch is imported, and before an earlier run is deleted.
        check_rows(recipe, on_event=functions.on_event, out=folder, folder=not force, offline=offline)
        from tunesmith.pipelines.tune.tune import tune_recipe
        from tunesmith.training.run_folder import delete_run

        if force and leads:
            delete_run(recipe, folder)
        return tune_recipe(recipe, out=folder, callbacks=functions, offline=offline, on=on)


@python_words
def replay(
    folder: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Replay:
    """Repeat the first steps of a run here and now, and report whether anything has changed.

    >>> import tunesmith
    >>> tunesmith.replay("runs/reviews").outcome  # doctest: +SKIP
    'same'

    Args:
        folder: folder of a finished run, which is not changed.
        settings: keys of the section `machine`, such as `{"machine.threads": 1}`; default: as in the run.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        The outcome, `same`, `rounding` or `changed`, with every compared quantity and what differs in the environment.

    Raises:
        TunesmithError: the run has no recording, or its rows or its base model have changed.
    """
    from tunesmith.pipelines.replay import replay as replay_run

    with reporting(progress, callback) as callbacks:
        return replay_run(Path(folder), changes=changes_of(settings), on_event=callbacks.on_event, offline=offline)


@python_words
def rebase(
    folder: str | Path,
    model: str | Path,
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Rebase:
    """Tune a new base model on the rows of a run, and test whether it is better.

    >>> import tunesmith
    >>> tunesmith.rebase("runs/reviews", "HuggingFaceTB/SmolLM2-360M-Instruct").tasks[0].answer  # doctest: +SKIP
    'better'

    Args:
        folder: folder of a finished run, which is not changed.
        model: the new base: alias, Hub id, folder or GGUF file.
        out: folder of the new run; default `runs/NAME`.
        settings: recipe keys, nested or dotted, over those of the run.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        Old tuned model, new base and new tuned model compared in pairs, for each task.

    Raises:
        TunesmithError: the run is not finished, its rows have changed, or the new base cannot be tuned with its recipe.
    """
    from tunesmith.events import Note
    from tunesmith.pipelines.rebase import rebase as rebase_run
    from tunesmith.pipelines.rebase import rebased_recipe

    recipe, notes = rebased_recipe(Path(folder), str(model), changes_of(settings))
    with reporting(progress, callback) as callbacks:
        for note in notes:
            callbacks.on_event(Note(note))
        return rebase_run(Path(folder), recipe, out=Path(out) if out else None, callbacks=callbacks, offline=offline)


def _former_parameters(
    more: dict[str, Any], callback: EventHandler | None, source: str | Path | Recipe | None
) -> tuple[EventHandler | None, str | Path | Recipe]:
    """Take the former parameters `listen` and `data_or_recipe` out of the keyword arguments of `tune`."""
    from tunesmith.errors import RecipeError
    from tunesmith.events import as_dict

    source = more.pop("data_or_recipe", source)
    if source is None:
        raise RecipeError("tune: no input; give a file of rows or a recipe")
    if (listen := more.pop("listen", None)) is not None:
        warnings.warn("listen= is deprecated; use callback=, which receives typed events", DeprecationWarning, 4)
        return lambda event: listen(as_dict(event)), source
    return callback, source


@python_words
def learning_curve(
    source: str | Path | Recipe,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    data: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    rows: int | Sequence[int] = (),
    target: float | None = None,
    minutes: float | None = None,
    on: str = "local",
    out: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
    **more: Any,
) -> LearningCurveReport:
    """Fit a learning curve and predict the score with more training rows.

    >>> import tunesmith
    >>> curve = tunesmith.learning_curve("reviews.jsonl", rows=5000, minutes=10)  # doctest: +SKIP
    >>> curve.sentence  # doctest: +SKIP
    'accuracy (%) 87.1 with 1,400 rows; 5,000 rows: 88.0 (86.9 to 89.1)'

    Args:
        source: a recipe, a recipe file, or a file of rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        data: keys of the section `data`.
        schedule: keys of the section `schedule`.
        settings: further recipe keys, nested or dotted.
        rows: predict the score with this many training rows; one number or several.
        target: estimate the rows needed for this score.
        minutes: time budget, met by using smaller training sizes.
        on: where the runs are trained: local, ray, or ray://HOST:PORT.
        out: folder of the curve; default `runs/need-NAME`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.
        **more: further recipe keys.

    Returns:
        The measured and predicted scores; `.expected` is empty if the data cannot support a prediction.

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    from tunesmith.pipelines.learning_curve.learning_curve import measure_learning_curve
    from tunesmith.pipelines.requests import LearningCurveOptions

    options = LearningCurveOptions((rows,) if isinstance(rows, int) else tuple(rows), target, minutes, on)
    named = {"model": model, "objective": objective, "technique": technique, "data": data, "schedule": schedule}
    with reporting(progress, callback) as callbacks:
        changes = changes_of(settings, more, **named)
        recipe = recipe_of(source, changes, on_event=callbacks.on_event, offline=offline)
        out = None if out is None else Path(out)
        return measure_learning_curve(recipe, options, out=out, callbacks=callbacks, offline=offline)[1]


@python_words
def compare(
    source: str | Path | Recipe,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    data: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    documents: Section | None = None,
    arms: str | Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: float = 0.0,
    price_per_hour: float = 0.0,
    engine: str = "",
    on: str = "local",
    out: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
    **more: Any,
) -> Comparison:
    """Compare prompting, retrieval and fine-tuning on the same held-out rows.

    >>> import tunesmith
    >>> result = tunesmith.compare("recipe.yaml", arms=["prompt", "tf-idf", "tuned"], budget=20)  # doctest: +SKIP
    >>> result.verdict.arm  # doctest: +SKIP
    'tf-idf'

    Args:
        source: a recipe, a recipe file, or a file of rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        data: keys of the section `data`.
        schedule: keys of the section `schedule`.
        documents: folder of documents for the arms with retrieval, or keys of the section.
        arms: arms to compare; by default all that the rows allow.
        settings: further recipe keys, nested or dotted.
        budget: time budget in minutes, met by using fewer test rows; 0: no limit.
        price_per_hour: machine price per hour, for the cost columns.
        engine: vllm or sglang (with options of it), or the address of a running one; empty for torch.
        on: where the arms are tuned: local, ray, or ray://HOST:PORT.
        out: folder of the comparison; default `comparisons/NAME`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.
        **more: further recipe keys.

    Returns:
        The comparison with `.arms` and `.verdict`; its page is `compare.html` in `.folder`.

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    from tunesmith.data.files import write_whole
    from tunesmith.pipelines.compare.compare import HTML
    from tunesmith.pipelines.compare.compare import compare as compare_arms
    from tunesmith.pipelines.compare.report import page
    from tunesmith.pipelines.requests import SERVER_KEY, CompareOptions, key_from_environment

    options = CompareOptions(budget, price_per_hour, key_from_environment(SERVER_KEY), engine, on)
    named = {"model": model, "objective": objective, "technique": technique, "data": data, "schedule": schedule}
    with reporting(progress, callback) as callbacks:
        changes = changes_of(settings, more, **named, documents=documents, arms=words(arms) or None)
        recipe = recipe_of(source, changes, on_event=callbacks.on_event, offline=offline)
        folder = None if out is None else Path(out)
        comparison = compare_arms(recipe, options, callbacks=callbacks, out=folder, offline=offline)
    write_whole(Path(comparison.folder) / HTML, page(comparison))
    return comparison


@python_words
def rlhf(
    recipe: str | Path,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    loop: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
    **more: Any,
) -> LoopReport:
    """Alternate rating answers and training on the ratings.

    >>> import tunesmith
    >>> report = tunesmith.rlhf("loop.yaml", loop={"rounds": 2})  # doctest: +SKIP
    >>> report.verdict  # doctest: +SKIP
    'better: the final model wins 61.0 % of 64 comparisons'

    Args:
        recipe: recipe file with a section `loop` and prompts as rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        loop: keys of the section `loop`.
        settings: further recipe keys, nested or dotted.
        out: folder of the loop; default `loops/NAME`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.
        **more: further recipe keys.

    Returns:
        The report of the loop.

    Raises:
        TunesmithError: wrong input; or pairs wait for human raters (`Refused`), and the message names the next command.
    """
    from tunesmith.pipelines.rlhf.loop import rlhf as run_loop

    named = {"model": model, "objective": objective, "technique": technique, "loop": loop}
    with reporting(progress, callback) as callbacks:
        loaded = _loop_recipe(recipe, changes_of(settings, more, **named), callbacks.on_event)
        return run_loop(loaded, callbacks=callbacks, out=None if out is None else Path(out), offline=offline)


@python_words
def plan_rlhf(
    recipe: str | Path,
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    loop: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    offline: bool = False,
    **more: Any,
) -> LoopPlan:
    """Return the rounds of a loop and their state, as `tunesmith rlhf --dry-run` does; parameters as of `rlhf`.

    Args:
        recipe: recipe file with a section `loop` and prompts as rows.
        model: alias, Hub id, folder or GGUF file; overrides the recipe.
        objective: objective, overrides the recipe.
        technique: technique, overrides the recipe.
        loop: keys of the section `loop`.
        settings: further recipe keys, nested or dotted.
        out: folder of the loop; default `loops/NAME`.
        offline: do not access the network.
        **more: further recipe keys.

    Returns:
        The plan with `.rounds`.

    Raises:
        TunesmithError: wrong input.
    """
    from tunesmith.events import ignore
    from tunesmith.pipelines.rlhf.setup import plan_loop

    named = {"model": model, "objective": objective, "technique": technique, "loop": loop}
    loaded = _loop_recipe(recipe, changes_of(settings, more, **named), ignore)
    return plan_loop(loaded, out=None if out is None else Path(out), offline=offline)


def _loop_recipe(path: str | Path, changes: Sequence[str], on_event: EventHandler) -> Recipe:
    from tunesmith.config import load_recipe
    from tunesmith.events import Note

    recipe, notes = load_recipe(path, changes=changes)
    for note in notes:
        on_event(Note(note))
    return recipe
