"""From the answers of all arms to the page: scores, pairs, tone, general knowledge, pace, facts, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from tunesmith.config.style_rules import columns
from tunesmith.data.examples.types import Example
from tunesmith.evaluation.predict import reference_answers
from tunesmith.evaluation.results import Retention
from tunesmith.metrics import style
from tunesmith.metrics.resampling import MIN_GROUPS, Clusters, groups_of
from tunesmith.metrics.significance import holm
from tunesmith.metrics.task_scores import BESIDE, SCALES, TaskScore, redrawn, score, task_score, value
from tunesmith.objectives import Instruct
from tunesmith.pipelines.compare.beliefs import table
from tunesmith.pipelines.compare.context import ArmAnswers, ComparisonContext
from tunesmith.pipelines.compare.knowledge_update import measure_knowledge_update
from tunesmith.pipelines.compare.report import (
    Against,
    ArmPage,
    Comparison,
    Cost,
    Gain,
    GeneralAbilityChange,
    Latency,
    StyleScore,
    Task,
    Update,
)
from tunesmith.pipelines.compare.selection import told_where
from tunesmith.pipelines.compare.verdict import ANSWERS, DIAGNOSIS, Candidate, Verdict, verdict
from tunesmith.pipelines.tune.build_report import environment
from tunesmith.report.formatting import several, signed
from tunesmith.report.schema import read_report
from tunesmith.retrieval.recall import Recall, recall

SECONDS_AN_HOUR = 3600.0

Pairs = dict[tuple[str, str], TaskScore]


def build_comparison(context: ComparisonContext, found: Sequence[ArmAnswers], *, price_per_hour: float) -> Comparison:
    """All that is known of the arms, and what follows from it."""
    metric = context.objective.metric
    pairs = _pairs(context, found)
    adjusted = holm({f"{a}\n{b}": pair.p_value for (a, b), pair in pairs.items()})
    p_values = {(a, b): adjusted[f"{a}\n{b}"] for a, b in pairs}
    reports = [read_report(Path(one.run)).retention for one in found if one.run]
    shared = _Shared(_facts(context, found), [kept for kept in reports if kept], price_per_hour)
    arms = [_arm(context, one, shared) for one in found]
    arms = [arm.model_copy(update={"against": _against(arm, arms, pairs, p_values)}) for arm in arms]
    looked = _retrieval(context) if told_where(context.recipe) else []
    said = _verdict(context, found, p_values, extra=_findings(arms, looked))
    return Comparison(
        folder=str(context.folder),
        model=context.recipe.model,
        objective=context.recipe.objective.kind,
        metric=metric,
        rows=len(context.test),
        arms=arms,
        gains=_gains(pairs, p_values),
        retrieval=looked,
        chunks=len(context.retrieval().index.chunks) if looked else 0,
        table=table(arms, said),
        verdict=said,
        notes=context.notes,
        environment=environment(context.machine()),
    )


def _pairs(context: ComparisonContext, found: Sequence[ArmAnswers]) -> Pairs:
    """Every two arms beside each other, all in one family of tests."""
    right, clusters, metric = reference_answers(context.test), groups_of(context.test), context.objective.metric
    return {
        (a.name, b.name): task_score(metric, right, (a.given, b.given), name="compare", groups=clusters)
        for a, b in combinations([one for one in found if one.name not in DIAGNOSIS], 2)
    }


def _verdict(
    context: ComparisonContext,
    found: Sequence[ArmAnswers],
    p_values: Mapping[tuple[str, str], float],
    *,
    extra: Sequence[str],
) -> Verdict:
    """The cheapest arm that no other surely beats by a margin worth its cost."""
    metric, right = context.objective.metric, reference_answers(context.test)
    ways = {one.name: one.given for one in found if one.name not in DIAGNOSIS}
    groups = groups_of(context.test)
    few = Clusters.of(len(right), groups).count < MIN_GROUPS  # so that each draw would be much the same rows
    drawn = dict.fromkeys(ways, np.empty(0)) if few else redrawn(metric, right, ways, groups=groups)
    candidates = [
        Candidate(one.name, value(metric, right, one.given), _cost(one), drawn[one.name], tuned=bool(one.run))
        for one in found
        if one.name in ways
    ]
    margin = context.recipe.compare.margin * SCALES.get(metric, 1.0)
    return verdict(candidates, p_values, margin=margin, learned=context.learned, extra=extra)


def _cost(one: ArmAnswers) -> float:
    """Seconds to build an arm and to let it answer 1,000 rows."""
    return one.build_seconds + ANSWERS * one.seconds / len(one.given)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the pages of all arms draw on."""

    facts: Mapping[str, Update]
    runs: Sequence[Retention]
    price_per_hour: float


def _arm(context: ComparisonContext, one: ArmAnswers, shared: _Shared) -> ArmPage:
    metric, right, clusters = context.objective.metric, reference_answers(context.test), groups_of(context.test)
    alone = score(metric, right, one.given, name=one.name, groups=clusters)
    domain, count = _domain(context, one, right)
    seconds = ANSWERS * one.seconds / len(one.given)
    rate = 0.0 if one.name.startswith("http") else shared.price_per_hour / SECONDS_AN_HOUR
    return ArmPage(
        name=one.name,
        detail=one.detail,
        candidate=one.name not in DIAGNOSIS,
        task=Task(metric=metric, score=alone.score, ci95=alone.ci95, n=alone.n),
        others={name: value(name, right, one.given) for name in BESIDE.get(metric, ())},
        against=None,
        domain=domain,
        domain_n=count,
        general=_general(context, one, shared.runs),
        style=_tone(context, one, right, context.test),
        latency=_latency(one),
        update=_update(shared.facts.get(one.name), rate),
        labels=one.labelled_rows,
        cost=Cost(
            build_seconds=one.build_seconds,
            seconds_per_1000=seconds,
            price_to_build=one.build_seconds * rate if rate else None,
            price_per_1000=seconds * rate if rate else None,
        ),
        run=one.run,
    )


def _against(
    arm: ArmPage, arms: Sequence[ArmPage], pairs: Pairs, p_values: Mapping[tuple[str, str], float]
) -> Against | None:
    """The arm beside the best of the others that score no higher; for the lowest, beside the next above it."""
    others = [one for one in arms if one.candidate and one.name != arm.name]
    if not arm.candidate or not others:
        return None
    below = [one for one in others if one.task.score <= arm.task.score]
    other = max(below, key=lambda one: one.task.score) if below else min(others, key=lambda one: one.task.score)
    forward = (other.name, arm.name) in pairs
    key = (other.name, arm.name) if forward else (arm.name, other.name)
    pair, sign = pairs[key], 1.0 if forward else -1.0
    low, high = sorted((sign * pair.ci95[0], sign * pair.ci95[1]))
    return Against(arm=other.name, delta=sign * pair.delta, ci95=(low, high), p_adjusted=p_values[key])


def _gains(pairs: Pairs, p_values: Mapping[tuple[str, str], float]) -> list[Gain]:
    """Every two arms, the better one first, the largest gain first."""
    found = []
    for (a, b), pair in pairs.items():
        ahead = pair.delta >= 0
        low, high = pair.ci95 if ahead else (-pair.ci95[1], -pair.ci95[0])
        arm, over = (b, a) if ahead else (a, b)
        found.append(Gain(arm=arm, over=over, delta=abs(pair.delta), ci95=(low, high), p_adjusted=p_values[a, b]))
    return sorted(found, key=lambda one: -one.delta)


def _domain(context: ComparisonContext, one: ArmAnswers, right: Sequence[str]) -> tuple[float | None, int]:
    """The score on the rows whose answer is known to stand in the documents."""
    if not told_where(context.recipe):
        return None, 0
    rows = [row for row, ids in enumerate(context.retrieval().right(context.test)) if ids]
    if not rows:
        return None, 0
    metric = context.objective.metric
    return value(metric, [right[row] for row in rows], [one.given[row] for row in rows]), len(rows)


def _general(context: ComparisonContext, one: ArmAnswers, runs: Sequence[Retention]) -> GeneralAbilityChange | None:
    """What the arm's model still knows; an arm that asks the base as it is has lost nothing."""
    if one.name.startswith("http") or one.name == "tf-idf":
        return None
    if not one.run:
        another = context.recipe.compare.model not in ("", context.recipe.model)
        base = runs[0].probe_base if runs and not another else None
        return GeneralAbilityChange(nats_rise=0.0, probe=base, probe_base=base)
    kept = read_report(Path(one.run)).retention
    if kept is None:
        return None
    rise = kept.general_nll_tuned - kept.general_nll_base
    return GeneralAbilityChange(nats_rise=rise, probe=kept.probe_tuned, probe_base=kept.probe_base)


def _tone(
    context: ComparisonContext, one: ArmAnswers, right: Sequence[str], test: Sequence[Example]
) -> StyleScore | None:
    """How near written answers are to people's, by a discriminator and by the recipe's rules."""
    if not isinstance(context.objective, Instruct):
        return None
    rules = style.rules_of(context.recipe.style)
    enough = len(right) >= style.FEWEST_PAIRS
    return StyleScore(
        auc=style.discriminator_auc(one.given, right) if enough else None,
        rules=style.rule_rates(one.given, rules, columns(context.recipe, test)) if rules else {},
    )


def _latency(one: ArmAnswers) -> Latency:
    return Latency(
        p50=float(np.median(one.latencies)) if one.latencies else None,
        p95=float(np.quantile(one.latencies, 0.95)) if one.latencies else None,
        prompt_tokens=float(np.mean(one.prompt_tokens)) if any(one.prompt_tokens) else None,
        answers_per_second=len(one.given) / max(one.seconds, 1e-9),
    )


def _update(known: Update | None, rate: float) -> Update | None:
    """What it takes until changed facts are known, with its price where a second has one."""
    if known is None or known.seconds is None or not rate:
        return known
    return known.model_copy(update={"price": known.seconds * rate})


def _retrieval(context: ComparisonContext) -> list[Recall]:
    """Each way to search, measured on the test rows whose chunk is known."""
    retrieval = context.retrieval()
    right = retrieval.right(context.test)
    if not any(right):
        return []
    asked = [retrieval.asked(row) for row in context.test]
    ways = ("fused", "words", "vectors") if retrieval.index.search == "fused" else (retrieval.index.search,)
    return [recall(way, retrieval.index.find(asked, shown=10, search=way), right) for way in ways]


def _facts(context: ComparisonContext, found: Sequence[ArmAnswers]) -> dict[str, Update]:
    """What each arm says after facts changed; nothing without documents that rows name."""
    if (
        not told_where(context.recipe)
        or not context.recipe.documents.origin
        or not context.recipe.compare.changed_facts
    ):
        return {}
    return measure_knowledge_update(context, [one for one in found if one.name not in ("no-context", "oracle-context")])


def _findings(arms: Sequence[ArmPage], looked: Sequence[Recall]) -> list[str]:
    """What the reader should have beside the verdict: where retrieval or reading fails."""
    by_name = {arm.name: arm for arm in arms}
    found = [
        f"retrieval ({one.search}) has a right chunk among the first 5 for {100 * one.recall[5]:.1f} % of the "
        f"{several(one.n, 'row')} whose chunk is known"
        for one in looked
    ]
    rag, oracle = by_name.get("rag"), by_name.get("oracle-context")
    if rag and oracle and rag.domain is not None and oracle.domain is not None:
        read = f"with the right chunk in hand the untuned model scores {oracle.domain:.3f} on these"
        found.append(f"{read}, with what was found {rag.domain:.3f}")
    raft, later = by_name.get("raft"), by_name.get("tuned+rag")
    if raft and later and raft.task.score < later.task.score:
        found.append(
            f"raft ({raft.task.score:.3f}) is not above tuned+rag ({later.task.score:.3f}), other than published"
        )
    if servers := [arm.name for arm in arms if arm.name.startswith("http")]:
        found.append(
            f"what {', '.join(servers)} charges is not known: its cost here is the time that this machine waits"
        )
    tuned = [arm for arm in arms if arm.general and arm.general.nats_rise > 0 and arm.run]
    found += [
        f"{arm.name} costs {signed(arm.general.nats_rise)} nats/token of general text" for arm in tuned if arm.general
    ]
    return found
