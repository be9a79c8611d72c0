"""Divergences from a teacher are TRL's on the same numbers, in chunks; answers of the student replace those of rows."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.bases import folder, tokens
from tunesmith.config import Recipe
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.errors import RecipeError
from tunesmith.events import ignore
from tunesmith.models import lm_head
from tunesmith.models.batch import collate
from tunesmith.models.lm_head import LanguageHead
from tunesmith.objectives.distillation import divergence, prompts_of
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.prepare import prepare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL has not settled where its GKD stays
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

ROWS, WORDS = 11, 37


def drawn(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_the_loss_over_chunks_and_its_gradients_are_trls(
    beta: float, temperature: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lm_head, "CHUNK", 4)
    layers = [nn.Linear(width, WORDS, bias=False) for width in (6, 9)]
    states, theirs = drawn(0, ROWS, 6).requires_grad_(), drawn(1, ROWS, 9)
    student, teacher = (LanguageHead(layer) for layer in layers)
    sizes = []

    def compare(logits: Tensor, others: Tensor) -> Tensor:
        sizes.append(len(logits))
        return divergence(logits, teacher.logits(others), beta=beta, temperature=temperature)

    ours = student.at_each(compare, states, theirs).sum()
    ours.backward()
    grads = [states.grad, layers[0].weight.grad]
    states.grad = layers[0].weight.grad = None
    whole = [layer(part)[None] for layer, part in zip(layers, (states, theirs), strict=True)]
    trl = GKDTrainer.generalized_jsd_loss(*whole, beta=beta, temperature=temperature, num_items_in_batch=1)
    trl.backward()
    assert max(sizes) == 4  # logits of no more positions are in memory
    torch.testing.assert_close(ours, trl, rtol=1e-5, atol=1e-5)
    for mine, one in zip(grads, [states.grad, layers[0].weight.grad], strict=True):
        torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-5)


def test_the_prompt_of_a_row_ends_before_its_last_answer():
    rows = ("....xx", "..x..xx.", "..........xx", "..........x")  # the last two share their prompt
    made = [
        tokens(range(100 if i > 1 else 20 * i, (100 if i > 1 else 20 * i) + len(row)), row)
        for i, row in enumerate(rows)
    ]
    batch = collate([Encoded((one,), "r") for one in made])
    assert prompts_of(batch) == [one.ids[: row.rindex(".x") + 1] for one, row in zip(made, rows, strict=True)]


def recipe(tmp_path: Path, **teacher: Any) -> Recipe:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"the fox and dog {n}", "completion": f"{n % 3} {n % 5}"} for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.model_validate(
        {
            "model": str(folder("llama")),
            "data": {"train": str(file), "validation": 4, "test": 4},
            "objective": {"kind": "instruct", "max_new_tokens": 6},
            "technique": "full",
            "teacher": teacher,
            "schedule": {"epochs": 2, "batch_rows": 4, "learning_rate": 3e-3, "probe": False, "save_steps": 1},
            "retention": {"questions": 0, "texts": 0},
            "challenge": False,
            "machine": {"dtype": "float32", "threads": 1, "products": "default"},  # not chosen by their speed
        }
    )


def weights(wanted: Recipe, out: Path, *, stop_after: int = 10**9) -> bytes:
    left = iter(range(stop_after))
    try:
        tune_recipe(wanted, out=out, callbacks=Callbacks(should_stop=lambda: next(left, None) is None), offline=True)
    except Interrupted:
        tune_recipe(wanted, out=out, callbacks=Callbacks(), offline=True)
    return b"".join(path.read_bytes() for path in sorted((out / "model").glob("*.safetensors")))


@pytest.mark.long
def test_a_student_learns_the_distribution_of_its_teacher_and_resumes_bit_for_bit(tmp_path: Path):
    plain = recipe(tmp_path)
    schedule = plain.schedule.model_copy(update={"epochs": 10})
    teacher = tune_recipe(
        plain.model_copy(update={"schedule": schedule}), out=tmp_path / "teacher", callbacks=Callbacks(), offline=True
    ).folder
    for name, section in {
        "jsd": {"loss": "jsd"},
        "own": {"loss": "reverse_kl", "on_policy": 0.5},
    }.items():
        wanted = recipe(tmp_path, model=str(teacher), **section)
        whole = weights(wanted, tmp_path / name)
        losses = [
            line["validation_loss"]
            for line in map(json.loads, (tmp_path / name / "journal.jsonl").read_text().splitlines())
            if "validation_loss" in line
        ]
        assert losses[-1] < losses[0], losses
        assert weights(wanted, tmp_path / f"{name} resumed", stop_after=5) == whole
    report = json.loads((tmp_path / "own" / "report.json").read_text())["distillation"]
    assert (report["asked"], report["kept"]) == (0, 0)
    assert [model["name"] for model in report["models"]] == ["base", "teacher", "gold rows alone", "student"]


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"loss": "jsd", "model": "http://127.0.0.1:9/v1"}, "a server does not state them"),
        ({"on_policy": 0.5, "rows": "rows.jsonl"}, "set teacher.loss: jsd"),
        ({"loss": "jsd", "model": "qwen3"}, "has other tokens"),
    ],
)
def test_a_distribution_that_cannot_be_learned_is_one_line(tmp_path: Path, section: dict[str, Any], error: str):
    section = {"model": "llama", **section}
    if "://" not in section["model"]:
        section["model"] = str(folder(section["model"]))
    if "rows" in section:
        section["rows"] = str(tmp_path / "rows.jsonl")
    with pytest.raises(RecipeError, match=error) as raised:
        prepare(recipe(tmp_path, **section), on_event=ignore, offline=True)
    assert "\n" not in str(raised.value)
