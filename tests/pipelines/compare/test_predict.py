"""What the untuned model is asked, and on which rows that is chosen."""

from __future__ import annotations

import pytest
import torch

from tests.bases import base, policy, template
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.evaluation import predict as answers
from tunesmith.evaluation.predict import AnswerSet, BaseModelPrompter
from tunesmith.inference.local_model import LocalModel
from tunesmith.objectives import Classify


def test_a_wording_that_knows_one_label_only_does_not_win_in_a_file_sorted_by_labels(monkeypatch: pytest.MonkeyPatch):
    rows: list[Example] = [LabelledText(f"x:{i}", f"t{i}", ("bad" if i < 200 else "good",)) for i in range(400)]
    truth = {row.text: row.labels[0] for row in rows if isinstance(row, LabelledText)}

    def answer(model: LocalModel, some: list[LabelledText]) -> AnswerSet:
        told = ["bad" if not model.wording else truth[row.text] if i % 5 else "bad" for i, row in enumerate(some)]
        return AnswerSet(told, "", 0.0)

    monkeypatch.setattr(answers, "answer", answer)
    kind = Classify(labels=("bad", "good"), metric="accuracy")
    untuned = BaseModelPrompter(base("llama"), policy("llama"), template("llama"), kind, 64)
    assert untuned.answer(train=rows, validation=(), test=rows[:4]).wording


def test_a_run_in_half_precision_chooses_the_prompt_in_it_and_checks_close_labels_of_test_rows_only(
    monkeypatch: pytest.MonkeyPatch,
):
    rows: list[Example] = [LabelledText(f"x:{i}", f"t{i}", (("bad", "good")[i % 2],)) for i in range(12)]
    scored = list[tuple[int, torch.dtype | None]]()
    whole = LocalModel._label_logits

    def logits(model: LocalModel, texts: list[str]) -> torch.Tensor:
        scored.append((len(texts), model.policy.autocast_dtype))
        return whole(model, texts)

    monkeypatch.setattr(LocalModel, "_label_logits", logits)
    made = policy("llama")
    made.scoring_dtype = torch.bfloat16
    kind = Classify(labels=("bad", "good"), metric="accuracy")
    untuned = BaseModelPrompter(base("llama"), made, template("llama"), kind, 64)
    untuned.answer(train=rows, validation=rows, test=rows[:4])
    prompts = len(kind.prompt_templates("decoder"))
    assert scored == [(12, torch.bfloat16)] * prompts + [(4, torch.bfloat16), (4, None)]


@pytest.mark.parametrize(
    ("metric", "multi", "by"),
    [("accuracy", False, "accuracy"), ("macro_f1", False, "macro_f1"), ("sample_f1", True, "macro_f1")],
)
def test_the_probe_that_is_an_encoders_base_is_chosen_by_what_counts(
    metric: str, multi: bool, by: str, monkeypatch: pytest.MonkeyPatch
):
    rows: list[Example] = [
        LabelledText(f"x:{i}", f"t{i}", ("bad" if i % 3 else "good",), multi=multi) for i in range(12)
    ]
    chosen: list[str] = []

    def probe(states: object, labels: list[str], asked: list[object], *, metric: str) -> list[str]:
        chosen.append(metric)
        return labels[:1] * len(asked)

    monkeypatch.setattr(answers, "linear_probe", probe)
    kind = Classify(labels=("bad", "good"), metric=metric, multi=multi)
    BaseModelPrompter(base("bert"), policy("bert"), template("bert"), kind, 64).answer(
        train=rows, validation=[], test=rows
    )
    assert set(chosen) == {by}
