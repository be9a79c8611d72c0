"""Build the report of a comparison from the answers of all arms: scores, tests, costs, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from tunesmith.config.style_rules import columns
from tunesmith.evaluation.predict import accepted_answers, reference_answers
from tunesmith.evaluation.results import Retention
from tunesmith.metrics import style
from tunesmith.metrics.resampling import ALPHA, MIN_GROUPS, Clusters, groups_of
from tunesmith.metrics.significance import holm
from tunesmith.metrics.task_scores import BESIDE, SCALES, TaskScore, redrawn, task_score, value
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.arm_kinds import kind_of
from tunesmith.pipelines.compare.beliefs import table
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.pipelines.compare.knowledge_update import measure_knowledge_update
from tunesmith.pipelines.compare.report import (
    Against,
    ArmPage,
    Comparison,
    Cost,
    Gain,
    GeneralAbilityChange,
    Latency,
    SearchGain,
    StyleScore,
    Update,
)
from tunesmith.pipelines.compare.searches import measure_searches
from tunesmith.pipelines.compare.selection import has_origins
from tunesmith.pipelines.compare.verdict import ANSWERS, Candidate, Verdict, p_text, verdict
from tunesmith.pipelines.tune.build_report import environment
from tunesmith.report.formatting import bounds, several, signed
from tunesmith.report.schema import read_report
from tunesmith.retrieval.recall import Recall

SECONDS_AN_HOUR = 3600.0

Pairs = Mapping[tuple[str, str], TaskScore]
PValues = Mapping[tuple[str, str], float]


def build_comparison(context: ComparisonContext, answers: Sequence[ArmAnswers], *, price_per_hour: float) -> Comparison:
    """Build the report of a comparison from the answers of each arm to the test rows."""
    metric, reference, groups = context.objective.metric, accepted_answers(context.test), groups_of(context.test)
    pairs = {
        (a.name, b.name): task_score(metric, reference, base=a.given, tuned=b.given, name="compare", groups=groups)
        for a, b in combinations([arm for arm in answers if not kind_of(arm.name).diagnostic], 2)
    }
    p_values = holm({names: pair.p_value for names, pair in pairs.items()})
    retentions = [read_report(Path(arm.run)).retention for arm in answers if arm.run]
    updates: dict[str, Update] = {}
    if has_origins(context.recipe) and context.recipe.documents.origin and context.recipe.compare.changed_facts:
        measured = [arm for arm in answers if arm.name not in ("no-context", "oracle-context")]
        updates = measure_knowledge_update(context, measured)
    base = next((retention for retention in retentions if retention), None)
    arms = [_arm_page(context, arm, base, updates.get(arm.name), price_per_hour=price_per_hour) for arm in answers]
    arms = [arm.model_copy(update={"against": _against(arm, arms, pairs, p_values)}) for arm in arms]
    recalls, search_gains = measure_searches(context, answers)
    choice = _verdict(context, answers, p_values, extra=_findings(arms, recalls, search_gains))
    return Comparison(
        folder=str(context.folder),
        model=context.recipe.model,
        objective=context.objective.kind,
        metric=metric,
        rows=len(context.test),
        arms=arms,
        gains=_gains(pairs, p_values),
        retrieval=recalls,
        search_gains=search_gains,
        chunks=len(context.retrieval().index.chunks) if recalls else 0,
        table=table(arms, choice),
        verdict=choice,
        notes=context.notes,
        environment=environment(context.machine()),
    )


def _verdict(
    context: ComparisonContext, answers: Sequence[ArmAnswers], p_values: PValues, *, extra: Sequence[str]
) -> Verdict:
    """Choose an arm by its scores, on the test rows and on resampled ones, and its cost."""
    metric, reference, groups = context.objective.metric, accepted_answers(context.test), groups_of(context.test)
    arms = [arm for arm in answers if not kind_of(arm.name).diagnostic]
    given = {arm.name: arm.given for arm in arms}
    # With few groups, resampled test sets are nearly the same.
    few = Clusters.of(len(reference), groups).count < MIN_GROUPS
    resampled = dict.fromkeys(given, np.empty(0)) if few else redrawn(metric, reference, given, groups=groups)
    candidates = [
        Candidate(
            arm.name,
            value(metric, reference, arm.given),
            arm.build_seconds + ANSWERS * arm.seconds / len(arm.given),
            resampled[arm.name],
            tuned=bool(arm.run),
        )
        for arm in arms
    ]
    margin = context.recipe.compare.margin * SCALES.get(metric, 1.0)
    return verdict(candidates, p_values, margin=margin, learned=context.learned, extra=extra)


def _arm_page(
    context: ComparisonContext,
    arm: ArmAnswers,
    base: Retention | None,
    update: Update | None,
    *,
    price_per_hour: float,
) -> ArmPage:
    """Return the results of one arm; `base` is the general ability of any run, for the probe accuracy of the base."""
    metric, reference = context.objective.metric, accepted_answers(context.test)
    task = arm.task or context.score(arm)
    seconds = ANSWERS * arm.seconds / len(arm.given)
    rate = 0.0 if kind_of(arm.name).remote else price_per_hour / SECONDS_AN_HOUR
    if update is not None and update.seconds is not None and rate:
        update = update.model_copy(update={"price": update.seconds * rate})
    in_documents: list[int] = []
    if has_origins(context.recipe):
        in_documents = [row for row, ids in enumerate(context.retrieval().correct(context.test)) if ids]
    domain = None
    if in_documents:
        domain = value(metric, [reference[row] for row in in_documents], [arm.given[row] for row in in_documents])
    style_score = None
    if context.objective.produces == "text":
        rules = style.rules_of(context.recipe.style)
        enough = len(reference) >= style.FEWEST_PAIRS
        style_score = StyleScore(
            auc=style.discriminator_auc(arm.given, reference_answers(context.test)) if enough else None,
            rules=style.rule_rates(arm.given, rules, columns(context.recipe, context.test)) if rules else {},
        )
    return ArmPage(
        name=arm.name,
        detail=arm.detail,
        candidate=not kind_of(arm.name).diagnostic,
        task=task,
        others={name: value(name, reference, arm.given) for name in BESIDE.get(metric, ())},
        against=None,
        domain=domain,
        domain_n=len(in_documents),
        general=_general(context, arm, base),
        style=style_score,
        latency=Latency(
            p50=float(np.median(arm.latencies)) if arm.latencies else None,
            p95=float(np.quantile(arm.latencies, 0.95)) if arm.latencies else None,
            prompt_tokens=float(np.mean(arm.prompt_tokens)) if any(arm.prompt_tokens) else None,
            answers_per_second=len(arm.given) / max(arm.seconds, 1e-9),
        ),
        update=update,
        labels=arm.labelled_rows,
        cost=Cost(
            build_seconds=arm.build_seconds,
            seconds_per_1000=seconds,
            price_to_build=arm.build_seconds * rate if rate else None,
            price_per_1000=seconds * rate if rate else None,
        ),
        run=arm.run,
        retriever=arm.retriever,
        reranker=arm.reranker,
        written=arm.written,
    )


def _against(arm: ArmPage, arms: Sequence[ArmPage], pairs: Pairs, p_values: PValues) -> Against | None:
    """Compare an arm with the best of those that score no higher; the lowest one with the next above it."""
    others = [other for other in arms if other.candidate and other.name != arm.name]
    if not arm.candidate or not others:
        return None
    below = [other for other in others if other.task.score <= arm.task.score]
    other = max(below, key=lambda page: page.task.score) if below else min(others, key=lambda page: page.task.score)
    forward = (other.name, arm.name) in pairs
    key = (other.name, arm.name) if forward else (arm.name, other.name)
    pair, sign = pairs[key], 1.0 if forward else -1.0
    low, high = sorted((sign * pair.ci95[0], sign * pair.ci95[1]))
    return Against(arm=other.name, delta=sign * pair.delta, ci95=(low, high), p_adjusted=p_values[key])


def _gains(pairs: Pairs, p_values: PValues) -> list[Gain]:
    """Return the gain of the better arm of each pair, the largest first."""
    gains = []
    for (a, b), pair in pairs.items():
        ahead = pair.delta >= 0
        low, high = pair.ci95 if ahead else (-pair.ci95[1], -pair.ci95[0])
        arm, over = (b, a) if ahead else (a, b)
        gains.append(Gain(arm=arm, over=over, delta=abs(pair.delta), ci95=(low, high), p_adjusted=p_values[a, b]))
    return sorted(gains, key=lambda gain: -gain.delta)


def _general(context: ComparisonContext, arm: ArmAnswers, base: Retention | None) -> GeneralAbilityChange | None:
    """Return the change of general ability; without a run it is 0, because the arm uses the base model."""
    kind = kind_of(arm.name)
    if kind.remote or not kind.language_model:
        return None
    if not arm.run:
        another = context.recipe.compare.model not in ("", context.recipe.model)
        probe = base.probe_base if base and not another else None
        return GeneralAbilityChange(nats_rise=0.0, probe=probe, probe_base=probe)
    retention = read_report(Path(arm.run)).retention
    if retention is None:
        return None
    return GeneralAbilityChange(nats_rise=retention.rise, probe=retention.probe_tuned, probe_base=retention.probe_base)


def _findings(arms: Sequence[ArmPage], recalls: Sequence[Recall], search_gains: Sequence[SearchGain]) -> list[str]:
    """Return further findings: where retrieval or reading fails, and what tuning costs."""
    by_name = {arm.name: arm for arm in arms}
    findings = [
        f"retrieval ({row.search}) has a correct chunk among the first 5 for {100 * row.recall[5]:.1f} % of the "
        f"{several(row.n, 'row')} whose chunk is known"
        for row in recalls
    ]
    findings += [
        f"{gain.search} finds chunks better than the search by {gain.over}: nDCG@10 {signed(gain.delta)} "
        f"({bounds(gain.ci95)}, adjusted {p_text(gain.p_adjusted)})"
        for gain in search_gains
        if gain.metric == "ndcg" and gain.delta > 0 and gain.p_adjusted < ALPHA
    ]
    found = [(arm.name, arm.update) for arm in arms if arm.update and arm.update.found is not None]
    if search_gains and found:
        shares = ", ".join(f"{100 * (update.found or 0.0):.0f} % with {name}" for name, update in found)
        changed = f"after {several(found[0][1].facts, 'fact')} changed in the documents"
        findings.append(f"{changed}, the first 5 chunks that are found contain the new text for {shares}")
    if written := max((arm.written for arm in arms), default=0):
        findings.append(f"the retriever was tuned on {several(written, 'question')} that a model wrote, too")
    rag, oracle = by_name.get("rag"), by_name.get("oracle-context")
    if rag and oracle and rag.domain is not None and oracle.domain is not None:
        findings.append(
            f"the base model scores {oracle.domain:.3f} on these rows with the correct chunk, {rag.domain:.3f} with "
            "the retrieved ones"
        )
    raft, tuned_rag = by_name.get("raft"), by_name.get("tuned+rag")
    if raft and tuned_rag and raft.task.score < tuned_rag.task.score:
        findings.append(
            f"raft ({raft.task.score:.3f}) scores lower than tuned+rag ({tuned_rag.task.score:.3f}), other than "
            "published"
        )
    if servers := [arm.name for arm in arms if kind_of(arm.name).remote]:
        findings.append(f"the price of {', '.join(servers)} is unknown: its cost here is the waiting time")
    findings += [
        f"{arm.name} costs {signed(arm.general.nats_rise)} nats/token of general text"
        for arm in arms
        if arm.run and arm.general and (arm.general.nats_rise or 0.0) > 0
    ]
    return findings
