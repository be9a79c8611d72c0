"""The workload of a run, counted before it starts: what its steps compute and what its evaluation generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tunesmith.data.examples.types import Pair, TextExample, UnpairedPreference
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.evaluators.preferences import WRITTEN
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.batch import Batch
from tunesmith.models.generation.generate import ROWS, common, groups
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.models.policy import Policy
from tunesmith.pipelines.plan.cost_model import TrainingWork, Written
from tunesmith.training.batches import batches_of
from tunesmith.training.optim import TrainingPlan, make_plan
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.replay import general_rows

# Steps of the first epoch whose micro-batches are counted, evenly spaced; the others are assumed to be like them.
COUNTED = 24
# Bytes that TF-IDF over character n-grams uses: scikit-learn itself, and per character of its training text (measured:
# 137 to 280 on mails, packages, reviews and films).
TFIDF_BYTES = 100e6
CHARACTER_BYTES = 200.0
# Forward passes over as many tokens as are learned, if policy and reference model read mismatched completions in each
# step (`PreferenceLearner.step_sums`).
READINGS = 2


@dataclass(frozen=True, slots=True)
class WorkloadCounter:
    """Counts the work of micro-batches by their task."""

    packs: bool  # rows are packed and share prefixes; otherwise they are padded
    heads: Mapping[str, int]  # parameters of each task's own head
    vocabulary: frozenset[str]  # tasks whose loss needs logits over the vocabulary
    referring: frozenset[str]  # tasks that need the reference model in each step

    @classmethod
    def of(cls, prepared: TrainingContext, policy: Policy) -> Self:
        """Return the counter of a run."""
        objectives = {name: task.recipe.objective for name, task in prepared.tasks.items()}
        heads = {name: objective.head(policy) for name, objective in objectives.items()}
        return cls(
            packs=policy.packs,
            heads={n: 0 if head is None else sum(v.numel() for v in head.parameters()) for n, head in heads.items()},
            vocabulary=frozenset(name for name, head in heads.items() if head is None or isinstance(head, MaskedHead)),
            referring=frozenset(name for name, objective in objectives.items() if objective.reference == "per_step"),
        )

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the work of some micro-batches as fields of `TrainingWork`."""
        with_logits = [batch for batch in batches if batch.task in self.vocabulary]
        referring = [batch for batch in batches if batch.task in self.referring]
        states = [(b.task, len(b.targets) if b.task in self.vocabulary else b.rows) for b in batches]
        return {
            "passes": len(batches),
            "rows": sum(batch.rows for batch in batches),
            "computed": sum(map(self.computed, batches)),
            "padded": sum(map(padded, batches)),
            "attended": sum(map(self.attended, batches)) + READINGS / 3 * sum(map(self.attended, referring)),
            "learned": sum(len(batch.targets) for batch in with_logits),
            "headed": sum(self.heads[task] * count for task, count in states),
            "read": READINGS * sum(map(self.computed, referring)),
            "read_learned": READINGS * sum(len(batch.targets) for batch in referring),
        }

    def computed(self, batch: Batch) -> int:
        """Return the tokens that the network computes."""
        return batch.forward_tokens if self.packs else padded(batch)

    def attended(self, batch: Batch) -> int:
        """Return the query-key pairs, masked ones included, as if no row ran whole (`WHOLE_SHARE`)."""
        if not self.packs:
            return batch.rows * batch.row_index.shape[1] ** 2
        return sum(level.queries.numel() * level.keys.shape[1] for level in batch.layout.levels)


def padded(batch: Batch) -> int:
    """Return the tokens of a batch whose rows are padded to the longest."""
    return batch.row_index.numel()


def count_work(prepared: TrainingContext, policy: Policy, counter: WorkloadCounter) -> TrainingWork:
    """Count the work of all training steps from the micro-batches of some of them."""
    batches, steps = batches_of(prepared), planned(prepared, policy).steps
    epoch = range(batches.steps_per_epoch)
    counted = min(COUNTED, len(epoch))
    sample = [batch for i in range(counted) for batch in batches.window(i * len(epoch) // counted)]
    widest_step = max(epoch, key=batches.widest)
    window = batches.window(widest_step)
    largest = max(window, key=counter.computed)
    tasks = prepared.tasks.values()
    return TrainingWork(
        steps=steps,
        **{name: round(value * steps / counted) for name, value in counter.counts(sample).items()},
        widest=counter.computed(largest),
        widest_rows=largest.rows,
        widest_padded=padded(largest),
        widest_first=widest_step == 0 and largest is window[0],
        widest_attended=counter.attended(largest),
        controls=int(prepared.recipe.controls),
        baseline_bytes=max(map(_tfidf_bytes, tasks)) if policy.device.type == "cpu" else 0.0,
        copies=int(prepared.recipe.objective.reference == "per_step"),
        head=sum(counter.heads.values()),
        written=tuple(group for task in tasks for group in generation(task, policy)),
    )


def planned(prepared: TrainingContext, policy: Policy) -> TrainingPlan:
    """Return the schedule, including the general rows that `tune` will mix in."""
    replayed = 0 if prepared.general else general_rows(prepared)
    rows = len(prepared.train) + replayed
    return make_plan(prepared.recipe, policy, rows=rows, validation=len(prepared.validation))


def _tfidf_bytes(task: TrainingContext) -> float:
    """Return the bytes of the TF-IDF baseline, which is fitted if rows have one label or a number."""
    objective = task.recipe.objective
    if not objective.fits_tfidf:
        return 0.0
    train = task.baseline_rows
    return TFIDF_BYTES + CHARACTER_BYTES * sum(len(row.text) for row in train if isinstance(row, TextExample))


def generation(task: TrainingContext, policy: Policy) -> Iterator[Written]:
    """Yield the batches in which one model generates the answers that are evaluated, as `generate` forms them."""
    objective = task.recipe.objective
    prompts: Sequence[Sequence[Message]] = ()
    if objective.produces == "text":
        pairs = [e.prompt for e in task.test if isinstance(e, Pair | UnpairedPreference)]
        prompts = list(dict.fromkeys(pairs))[:WRITTEN] or [objective.prompt_messages(example) for example in task.test]
    model = LocalModel(policy, task.template, objective, task.recipe.data.max_tokens)
    thinking = model.thinking_mode()
    longest = sampling_of(objective, thinking=thinking).max_new_tokens
    encoded = [model.prompt(messages, answer=longest, thinking=thinking) for messages in prompts]
    for group in groups(policy, encoded, ROWS):
        rows = [encoded[i] for i in group]
        prompt = max(map(len, rows))
        yield Written(rows=len(rows), prompt=prompt, fed=prompt - common(rows), answer=longest)
