"""The rows of a run counted before it begins: what its steps compute, and what it writes when it is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tunesmith.data.examples.types import LabelledText, Pair, UnpairedPreference
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.evaluators.preferences import WRITTEN
from tunesmith.inference.local_model import LocalModel, sampling_of
from tunesmith.models.batch import Batch
from tunesmith.models.generation.generate import ROWS, common, groups
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Instruct, Preference
from tunesmith.objectives.instruct import asked
from tunesmith.pipelines.plan.cost_model import TrainingWork, Written
from tunesmith.training.batches import batches_of
from tunesmith.training.optim import TrainingPlan, make_plan
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.replay import general_rows

# At most so many steps of the first pass over the rows are counted, evenly spread; the rest are taken to be like them.
COUNTED = 24
# Bytes that TF-IDF with runs of characters takes: scikit-learn itself, and for each character that it learns from
# (137 to 280 on mails, packages, reviews and films).
TFIDF_BYTES, CHARACTER_BYTES = 100e6, 200.0
# Passes without a gradient over as many tokens as are learned from, where steps ask the model and its start about
# answers to other prompts (`Preference.together`).
READINGS = 2


@dataclass(frozen=True, slots=True)
class WorkloadCounter:
    """How the micro-batches of a run are counted, each by its task."""

    packs: bool  # rows stand together and share what they begin with; else each is padded
    heads: Mapping[str, int]  # numbers of each task's own head
    worded: frozenset[str]  # tasks whose learned positions meet the vocabulary
    asking: frozenset[str]  # tasks whose steps ask the start

    @classmethod
    def of(cls, prepared: TrainingContext, policy: Policy) -> Self:
        """How this run's are; `policy` is the base untouched."""
        objectives = {name: one.recipe.objective for name, one in prepared.tasks.items()}
        heads = {name: objective.head(policy) for name, objective in objectives.items()}
        return cls(
            packs=policy.packs,
            heads={n: 0 if head is None else sum(v.numel() for v in head.parameters()) for n, head in heads.items()},
            worded=frozenset(name for name, head in heads.items() if head is None or isinstance(head, MaskedHead)),
            asking=frozenset(name for name, objective in objectives.items() if objective.reference == "per_step"),
        )

    def counts(self, found: Sequence[Batch]) -> dict[str, float]:
        """What micro-batches come to, under the names that `TrainingWork` has for it."""
        worded = [batch for batch in found if batch.task in self.worded]
        asking = [batch for batch in found if batch.task in self.asking]
        headed = (self.heads[b.task] * (len(b.targets) if b.task in self.worded else b.rows) for b in found)
        return {
            "passes": len(found),
            "rows": sum(batch.rows for batch in found),
            "computed": sum(map(self.computed, found)),
            "padded": sum(map(padded, found)),
            "attended": sum(map(self.attended, found)) + READINGS / 3 * sum(map(self.attended, asking)),
            "learned": sum(len(batch.targets) for batch in worded),
            "headed": sum(headed),
            "read": READINGS * sum(map(self.computed, asking)),
            "told": READINGS * sum(len(batch.targets) for batch in asking),
        }

    def computed(self, batch: Batch) -> int:
        """Tokens that pass through the network."""
        return batch.forward_tokens if self.packs else padded(batch)

    def attended(self, batch: Batch) -> int:
        """Pairs of a query and a key that are multiplied, those that are not seen among them."""
        if not self.packs:
            return batch.rows * batch.row_index.shape[1] ** 2
        return sum(level.queries.numel() * level.keys.shape[1] for level in batch.layout.levels)


def padded(batch: Batch) -> int:
    """Tokens of a batch whose rows are all as long as the longest."""
    return batch.row_index.numel()


def count_work(prepared: TrainingContext, policy: Policy, counter: WorkloadCounter) -> TrainingWork:
    """All steps of the run, counted on the batches of some of them; `policy` is the base untouched."""
    batches, steps = batches_of(prepared), planned(prepared, policy).steps
    every = range(batches.steps_per_epoch)
    some = min(COUNTED, len(every))
    counted = counter.counts([one for place in range(some) for one in batches.window(place * len(every) // some)])
    place = max(every, key=batches.widest)
    window = batches.window(place)
    largest = max(window, key=counter.computed)
    return TrainingWork(
        steps=steps,
        **{name: round(value * steps / some) for name, value in counted.items()},
        widest=counter.computed(largest),
        widest_rows=largest.rows,
        widest_padded=padded(largest),
        widest_first=place == 0 and largest is window[0],
        widest_attended=counter.attended(largest),
        controls=int(prepared.recipe.controls),
        cheap=max(map(_cheap_bytes, tasks_of(prepared))) if policy.device.type == "cpu" else 0.0,
        copies=int(prepared.recipe.objective.reference == "per_step"),
        head=sum(counter.heads.values()),
        written=tuple(group for part in tasks_of(prepared) for group in written(part, policy)),
    )


def planned(prepared: TrainingContext, policy: Policy) -> TrainingPlan:
    """The schedule, general rows counted that `tune` will mix in."""
    more = 0 if prepared.general else general_rows(prepared)
    return make_plan(prepared.recipe, policy, rows=len(prepared.train) + more)


def tasks_of(prepared: TrainingContext) -> list[TrainingContext]:
    """Each task of a run that learns several; else the run."""
    return list(prepared.tasks.values())


def _cheap_bytes(part: TrainingContext) -> float:
    """What TF-IDF takes on the task, where it is tried."""
    objective = part.recipe.objective
    if not isinstance(objective, Classify) or objective.multi:
        return 0.0
    return TFIDF_BYTES + CHARACTER_BYTES * sum(
        len(e.text) for e in part.loaded.split.train if isinstance(e, LabelledText)
    )


def written(part: TrainingContext, policy: Policy) -> Iterator[Written]:
    """The groups in which one model answers what it is scored by, as `generate` makes them; none for what writes no
    answers."""
    objective = part.recipe.objective
    chats: Sequence[Sequence[Message]] = ()
    if isinstance(objective, Instruct):
        chats = [asked(example) for example in part.test]
    elif isinstance(objective, Preference):
        chats = list(dict.fromkeys(e.prompt for e in part.test if isinstance(e, Pair | UnpairedPreference)))[:WRITTEN]
    longest = sampling_of(objective).max_new_tokens
    model = LocalModel(policy, part.template, objective, part.recipe.data.max_tokens)
    prompts = [model.prompt(chat, answer=longest) for chat in chats]
    for group in groups(policy, prompts, ROWS):
        some = [prompts[i] for i in group]
        prompt = max(map(len, some))
        yield Written(rows=len(some), prompt=prompt, fed=prompt - common(some), answer=longest)
