"""Every objective under every technique: it learns, comes back as it was saved, and no row notices the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import base, chats, gradients, labelled, pairs, policy, template
from tests.tiny import DECODERS
from tunesmith.config import check_pair, make_recipe
from tunesmith.data.examples.types import Text
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.errors import RecipeError
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Domain, Instruct, Preference, Reward
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.prepare import encode_all, masking_of
from tunesmith.training.reference_logprobs import add_reference_logprobs

# What moves, a rate that suits a width of 32, and how much of the loss may be left: a few vectors change little in a
# random model.
TECHNIQUES: dict[str, tuple[Technique, float, float]] = {
    "full": (Full(), 1e-2, 0.8),
    "lora": (Lora(rank=4), 1e-2, 0.9),
    "dora": (Lora(rank=4, dora=True), 1e-2, 0.9),
    "qlora": (Lora(rank=4, quantize="nf4"), 1e-2, 0.9),
    "ia3": (Ia3(), 1e-1, 0.98),
    "prompt": (Prompt(tokens=6), 1e-1, 0.985),
    "prefix": (Prefix(tokens=6), 3e-1, 0.97),
    "p-tuning": (PTuning(tokens=6), 1e-2, 0.985),
}
# Objective and family. The tiny encoder's masked-language head is trained with whatever else moves.
CELLS: dict[str, tuple[Any, str]] = {
    "words": (Classify(), "llama"),
    "decoder head": (Classify(output="linear"), "llama"),
    "answers": (Instruct(), "llama"),
    "next token": (Domain(), "llama"),
    "encoder head": (Classify(), "bert"),
    "hidden words": (Domain(), "bert"),
    "preferred answers": (Preference(), "llama"),
    "decoder reward": (Reward(), "llama"),
    "encoder reward": (Reward(), "bert"),
}
STEPS = 9


def rows_of(cell: str) -> tuple[Any, list[Encoded]]:
    """The bound objective of a cell and eight rows of it, as the loss sees them."""
    objective, kind = CELLS[cell]
    form = template(kind)
    said = ("The quick brown fox jumps", "I like the lazy dog", "The phone is bad", "What is the capital of France")
    texts = [Text(f"rows:{i}", f"{said[i % 4]} {i}.") for i in range(8)]
    judged = dict.fromkeys(("preference", "reward"), pairs(8))
    examples = {"classify": labelled(8), "instruct": chats(8), "domain": texts, **judged}[objective.kind]
    objective = objective.bind(examples, "decoder" if kind in DECODERS else "encoder")
    rows = encode_all(objective, examples, form, limit=256)
    if isinstance(objective, Preference):
        rows = add_reference_logprobs(rows, policy(kind))
    masking = masking_of(objective, form, seed=0)
    return objective, [masking.hide(row, 0) for row in rows] if masking else rows


def policy_of(cell: str, word: str) -> Policy:
    """A fresh tiny policy with the objective's head."""
    torch.manual_seed(0)
    made = policy(CELLS[cell][1], TECHNIQUES[word][0])
    made.head = rows_of(cell)[0].head(made)
    return made


def batch_of(rows: Sequence[Encoded], made: Policy) -> Batch:
    return collate(rows, share=made.family == "decoder")


@torch.no_grad()
def loss_of(made: Policy, objective: Any, batches: Sequence[Batch]) -> float:
    learner = objective.make_learner()
    return sum(float(learner.loss(learner.prepare(batch, made), made).total) for batch in batches)


@pytest.mark.long
@pytest.mark.parametrize("word", TECHNIQUES)
@pytest.mark.parametrize("cell", CELLS)
def test_eight_rows_are_learned_kept_and_read_alike_alone_and_together(cell: str, word: str, tmp_path: Path):
    technique, rate, left = TECHNIQUES[word]
    if word == "qlora":
        pytest.importorskip("bitsandbytes")
    made, (objective, rows) = policy_of(cell, word), rows_of(cell)
    batch, plan = batch_of(rows, made), TrainingPlan(steps=STEPS, learning_rate=rate)
    start = {name: value.detach().clone() for name, value in made.trainable()}
    optimizer = make_optimizer(made, plan)
    set_rate(optimizer, rate)
    losses = [step(made, objective.make_learner(), [batch], optimizer=optimizer, clip=1.0)[0] for _ in range(STEPS)]
    assert losses[-1] < left * losses[0]
    assert all(not torch.equal(value, start[name]) for name, value in made.trainable() if "pooler" not in name)

    made.train(False)
    together = loss_of(made, objective, [batch])
    assert together == pytest.approx(loss_of(made, objective, [batch_of([row], made) for row in rows]), rel=1e-4)

    technique.save(made, tmp_path)
    found = base(CELLS[cell][1], technique.load_options())
    restored = technique.restore(found.network, tmp_path, family=found.family)
    restored.head = made.head
    assert loss_of(restored, objective, [batch]) == together


@pytest.mark.parametrize("word", TECHNIQUES)
@pytest.mark.parametrize("cell", ["words", "encoder head"])
def test_products_in_half_precision_give_nearly_the_same_loss_and_gradients(cell: str, word: str):
    if word == "qlora":
        pytest.importorskip("bitsandbytes")
    made, (objective, rows) = policy_of(cell, word), rows_of(cell)
    if made.head is not None:
        torch.nn.init.normal_(made.head.weight)  # one that starts at zero lets nothing through
    batch, found = batch_of(rows, made), []
    for mixed in (None, torch.bfloat16):
        made.autocast_dtype = mixed
        loss = objective.make_learner().loss(batch, made).total
        loss.backward()
        found.append((loss.item(), torch.cat([value.flatten() for value in gradients(made).values()])))
    (whole, wanted), (half, given) = found
    assert half == pytest.approx(whole, rel=0.02)
    assert (given - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("word", TECHNIQUES)
def test_pairs_that_cannot_work_are_refused_under_every_technique(word: str):
    raw = {"data": "rows.jsonl", "technique": word, "model": "minilm-l6"}
    for objective, why in (({"kind": "classify", "output": "words"}, "output: linear"), ("instruct", "classify")):
        recipe, _ = make_recipe({**raw, "objective": objective}, place="test")
        with pytest.raises(RecipeError, match=f"nearest that works: .*{why}"):
            check_pair(recipe, "encoder")


@pytest.mark.parametrize(
    ("wanted", "family", "nearest"),
    [({"output": "words"}, "decoder", "output: linear"), ({"multi": True}, "encoder", "balance: false")],
)
def test_balanced_labels_are_refused_where_no_head_gives_one_label(
    wanted: dict[str, object], family: str, nearest: str
):
    objective = {"kind": "classify", "balance": True, **wanted}
    recipe, _ = make_recipe({"data": "rows.jsonl", "model": "m", "objective": objective}, place="test")
    with pytest.raises(RecipeError, match=f"balance: true requires a linear head .*nearest that works: {nearest}"):
        check_pair(recipe, family)


def test_macro_f1_is_refused_where_a_row_has_several_labels():
    objective = {"kind": "classify", "multi": True, "metric": "macro_f1"}
    recipe, _ = make_recipe({"data": "rows.jsonl", "model": "m", "objective": objective}, place="test")
    with pytest.raises(RecipeError, match="nearest that works: metric: sample_f1"):
        check_pair(recipe, "encoder")
