"""General text and probe are read as the tokenizer reads every text: behind its beginning token, where it has one."""

from __future__ import annotations

import pytest
import torch

from tests.bases import policy, template
from tunesmith.data.text.domain_terms import general_text
from tunesmith.evaluation import retention
from tunesmith.evaluation.retention import ProbeItem, general_nll, probe

BEGINNINGS = [("gemma", [2]), ("llama", [])]


@pytest.mark.parametrize(("kind", "before"), BEGINNINGS)
def test_each_window_of_general_text_begins_as_every_text_does(
    kind: str, before: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retention, "WINDOWS", 1)
    made, form = policy(kind), template(kind)
    window = [i for text in general_text() for i in form.tokenizer(text, add_special_tokens=False)["input_ids"]][:256]
    ids = torch.tensor([[*before, *window]])
    with torch.no_grad():
        logits = made.network(input_ids=ids).logits[0, len(before) : -1]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]))
    assert general_nll(made, form) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(("kind", "before"), BEGINNINGS)
def test_each_question_of_the_probe_begins_as_every_text_does(
    kind: str, before: list[int], monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[int]] = []
    whole = retention.option_scores

    def heard(made: object, prompts: list[list[int]], options: list[list[list[int]]]) -> torch.Tensor:
        asked.extend(prompts)
        return whole(made, prompts, options)

    monkeypatch.setattr(retention, "option_scores", heard)
    probe(policy(kind), template(kind), [ProbeItem("f", "What is good?", ("fox", "dog"), 0)])
    words = template(kind).tokenizer("What is good?", add_special_tokens=False)["input_ids"]
    assert asked == [[*before, *words]]
