"""Rows in, a tuned model and its measured worth out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Example
from tunesmith.data.files import write_whole
from tunesmith.evaluation.retention import general_nll, measure
from tunesmith.inference.folder import About, save_model
from tunesmith.inference.local import LocalModel
from tunesmith.model.checkpoint import write_folder
from tunesmith.model.load import LoadOptions, load_base
from tunesmith.model.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.recipe import Recipe, save_recipe
from tunesmith.report.html import write_reports
from tunesmith.report.schema import Report, read_report
from tunesmith.workflows import documents
from tunesmith.workflows.answers import Answers, Untuned, Ways, answer, gold, question
from tunesmith.workflows.assemble import Before, Measured, assemble
from tunesmith.workflows.documents import Reader
from tunesmith.workflows.frozen_head import frozen_head, how_made
from tunesmith.workflows.prepare import Listener, Prepared, prepare
from tunesmith.workflows.replay import with_replay
from tunesmith.workflows.run_folder import RunFolder, open_run
from tunesmith.workflows.train import Watch, train
from tunesmith.workflows.worth import (
    calibrate,
    cheap_ways,
    control_answers,
    general_before,
    head_only,
    reliability,
    retention,
    shuffled,
    voice,
)


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
        page = folder.page()
        data = recipe.data.model_copy(update={"audit": page.get("audit", recipe.data.audit)})
        recipe = recipe.model_copy(update={"machine": type(recipe.machine)(**page["machine"]), "data": data})
    began = time.perf_counter()
    prepared = prepare(recipe, listen=listen, offline=offline)
    machine = prepared.machine
    on = {"device": machine.device, "dtype": machine.dtype, "threads": machine.threads}
    folder.begin({"machine": on, "audit": recipe.data.audit})
    save_recipe(prepared.recipe, folder.path / "recipe.yaml")
    prepared = _with_text(prepared, folder.path, Watch(listen, stop), offline=offline)
    before = _before(prepared, folder, listen)
    control = _control(prepared, folder.path, Watch(listen, stop)) if recipe.controls else {}
    trained = train(prepared, folder.path, watch=Watch(listen, stop, _gate(prepared, before)))
    limit = prepared.recipe.data.max_tokens
    model = LocalModel(trained.policy, prepared.template, prepared.recipe.objective, limit)
    measured = _after(Measured(prepared, trained, before, model), control, listen)
    write_folder(folder.path / "model", lambda half: save_model(half, model, _about(prepared, model)))
    _write_predictions(measured, folder.path)
    report = assemble(measured, name=folder.path.name, seconds=time.perf_counter() - began)
    write_whole(folder.path / "report.json", report.model_dump_json(indent=1))
    write_reports(folder.path)
    return Run(folder.path, report)


def _with_text(prepared: Prepared, out: Path, watch: Watch, *, offline: bool) -> Prepared:
    """What learning from texts needs before it begins: general rows, and an encoder's head for hidden words."""
    if not isinstance(prepared.recipe.objective, Domain):
        return prepared
    found = with_replay(prepared, out, listen=watch.listen, offline=offline)
    return replace(found, head=frozen_head(found, out, watch=watch)) if found.base.family == "encoder" else found


def _before(prepared: Prepared, folder: RunFolder, listen: Listener) -> Before:
    """The untuned model, kept in the run folder so that a resumed run need not ask again."""
    kept = folder.path / "before.json"
    if kept.exists():
        return Before.model_validate_json(kept.read_text(encoding="utf-8"))
    listen({"event": "stage", "text": f"scoring {prepared.recipe.model} as it is"})
    base, objective, limit = prepared.base, prepared.recipe.objective, prepared.recipe.data.max_tokens
    policy = Policy.over(base.network, family=base.family, reference=nullcontext)
    if isinstance(objective, Domain):
        return _keep(_before_reading(prepared, policy, objective, folder), kept)
    untuned = Untuned(base, policy, prepared.template, objective, limit)
    split, test = prepared.loaded.split, prepared.test
    answers = untuned.answer(train=split.train, validation=split.validation, test=test)
    ways = cheap_ways(prepared, test)
    controls = head_only(prepared, untuned.model(), test) if prepared.recipe.controls else {}
    general = general_before(prepared, policy)
    return _keep(Before(answers=answers, ways=ways, controls=controls, general=general), kept)


def _before_reading(prepared: Prepared, policy: Policy, objective: Domain, folder: RunFolder) -> Before:
    """What the untuned model says to the test documents."""
    how = "as it is"
    if prepared.head is not None:
        policy.head = objective.head(policy)
        assert policy.head is not None
        policy.head.load_state_dict(prepared.head)
        how = how_made(folder.path)
    policy.train(False)
    found = _reader(prepared, objective).read(policy, prepared.template, prepared.test)
    general = general_before(prepared, policy)
    return Before(answers=Answers([], how, found.seconds), ways={}, documents=found.told, general=general)


def _reader(prepared: Prepared, objective: Domain) -> Reader:
    """How the documents of a run are read."""
    return Reader(objective, prepared.recipe.data.max_tokens, prepared.recipe.seed)


def _keep(found: Before, kept: Path) -> Before:
    """The same, written down whole or not at all."""
    write_whole(kept, found.model_dump_json())
    return found


def _gate(prepared: Prepared, before: Before) -> Callable[[Policy], str]:
    """Says in what a policy breaks the recipe's bound on what general text may cost; nothing where it keeps it."""
    bound, general = prepared.recipe.gates.max_general_nats, before.general
    if bound is None or general is None:
        return lambda policy: ""

    def outside(policy: Policy) -> str:
        mixed, policy.mixed = policy.mixed, None  # in the precision of the report, which judges the gate at the end
        rise = general_nll(policy, prepared.template) - general.nll
        policy.mixed = mixed
        return f"general text costs {rise:+.3f} nats/token, allowed {bound}" if rise > bound else ""

    return outside


def _control(prepared: Prepared, out: Path, watch: Watch) -> Ways:
    """The answers of the same recipe on shuffled answers, over a base of its own."""
    watch.listen({"event": "stage", "text": "control: the same on shuffled answers"})
    options = LoadOptions("float32", prepared.machine.device, prepared.recipe.technique.load_options().quantize)
    dealt = replace(shuffled(prepared), base=load_base(prepared.recipe.model, options=options, offline=True))
    folder = out / "control"
    folder.mkdir(exist_ok=True)
    return control_answers(prepared, train(dealt, folder, watch=watch).policy, prepared.test)


def _after(run: Measured, control: Ways, listen: Listener) -> Measured:
    """The tuned model's answers and all that is measured on it."""
    listen({"event": "stage", "text": "scoring the tuned model"})
    prepared, model, test = run.prepared, run.model, run.prepared.test
    general = measure(run.trained.policy, prepared.template) if run.before.general else None
    kept = retention(run.before.general, general) if run.before.general and general else None
    objective = prepared.recipe.objective
    if isinstance(objective, Domain):
        found = _reader(prepared, objective).read(model.policy, prepared.template, test)
        return replace(run, tuned=Answers([], "", found.seconds), documents=found.told, retention=kept)
    threshold = calibrate(prepared, model)
    tuned = answer(model, test)
    return replace(
        run,
        tuned=tuned,
        controls=control,
        calibration=reliability(prepared, model, tuned, threshold),
        retention=kept,
        style=voice(prepared, (run.before.answers, tuned), test),
    )


def _about(prepared: Prepared, model: LocalModel) -> About:
    """The page that goes with the tuned model."""
    recipe = prepared.recipe
    return About(
        base=recipe.model,
        fingerprint=prepared.base.fingerprint,
        family=prepared.base.family,
        objective=recipe.objective,
        technique=recipe.technique,
        template_hash=prepared.template.hash,
        limit=recipe.data.max_tokens,
        temperature=model.temperature,
    )


def _write_predictions(run: Measured, out: Path) -> None:
    """Each test row with what was right and what both models said, or each document with what both found it worth."""
    objective = run.prepared.recipe.objective
    lines = (
        documents.lines(objective.metric, (run.before.documents, run.documents), run.prepared.test)
        if isinstance(objective, Domain)
        else _answer_lines(run.prepared.test, run.before.answers, run.tuned)
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(out / "predictions.jsonl", text)


def _answer_lines(examples: Sequence[Example], base: Answers, tuned: Answers) -> list[dict[str, Any]]:
    """A line for each row with what was right and what both models said."""
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
        lines.append(line)
    return lines
