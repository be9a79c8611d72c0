"""Numbers of texts: standardised for the loss, in the unit of the rows for everyone else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from tests.bases import policy, template
from tests.served import engine_over, save_run
from tunesmith.cli import main
from tunesmith.data.examples.types import RatedText
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.errors import DataError, RecipeError, RowError
from tunesmith.evaluation.evaluators.numbers import as_text
from tunesmith.inference.export.formats import merged, write_merged
from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Regress
from tunesmith.techniques import Full, Lora

TEXTS = ("great phone", "it broke after a day, and the battery too", "fine", "not bad at all")
NUMBERS = (3.5, -2.0, 0.5, 1.25)
FAMILIES = ("bert", "llama")


def rated() -> list[RatedText]:
    return [RatedText(f"rows:{i}", text, number) for i, (text, number) in enumerate(zip(TEXTS, NUMBERS, strict=True))]


def rows(**columns: list[object]) -> list[Row]:
    table = zip(*columns.values(), strict=True)
    return [Row(f"rows.jsonl:{i}", dict(zip(columns, values, strict=True))) for i, values in enumerate(table, 1)]


def prepared(kind: str, technique=None) -> tuple[Regress, Policy, Batch]:
    """The objective with mean and deviation, a policy whose head is not zero, and the rows as a batch."""
    objective, form = Regress(), template(kind)
    encoded = [objective.encode(example, form, limit=64) for example in rated()]
    objective = objective.bind_encoded(encoded)
    made = policy(kind, technique or Full())
    made.head = objective.head(made)
    with torch.no_grad():
        made.head.weight.copy_(torch.randn(made.head.weight.shape, generator=torch.Generator().manual_seed(0)))
        made.head.bias.fill_(0.3)
    return objective, made, collate(encoded, share=kind != "bert")


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_and_its_gradient_are_torchs_squared_error_of_standardised_numbers(kind: str):
    objective, made, batch = prepared(kind)
    standard = torch.tensor((np.array(NUMBERS) - np.mean(NUMBERS)) / np.std(NUMBERS), dtype=torch.float32)
    loss = objective.loss(batch, made)
    assert loss.units == 4
    found = torch.autograd.grad(loss.total, [made.head.weight, made.head.bias])
    wanted_loss = 4 * mse_loss(made.head(made.pooled(batch))[:, 0], standard)
    wanted = torch.autograd.grad(wanted_loss, [made.head.weight, made.head.bias])
    assert loss.total.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, wanted, strict=True))


def test_mean_and_deviation_are_those_of_the_training_rows_and_equal_numbers_are_refused():
    encoded = [Regress().encode(example, template("bert"), limit=64) for example in rated()]
    bound = Regress().bind_encoded(encoded[:2])
    assert (bound.mean, bound.scale) == (0.75, 2.75)
    with pytest.raises(DataError, match="rows: all 2 rows have the number 3.5; regress needs two or more"):
        Regress().bind([rated()[0], rated()[0]], "encoder")


@pytest.mark.long
@pytest.mark.parametrize("technique", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_saved_model_predicts_in_the_unit_of_the_rows_everywhere(
    kind: str, technique, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    objective, made, batch = prepared(kind)
    run = save_run(tmp_path / "run", technique, objective, kind=kind, lively=0.05)
    model = load(run)
    numbers = model.predict(TEXTS)
    assert model.predict(TEXTS[0]) == pytest.approx(numbers[0], abs=1e-5)
    assert model.answer(TEXTS[0]) == pytest.approx(numbers[0], abs=1e-5)
    states = model.embed(TEXTS)
    with torch.no_grad():
        z = model.policy.head(states)[:, 0].numpy()
    assert numbers == pytest.approx((z * np.std(NUMBERS) + np.mean(NUMBERS)).tolist(), abs=1e-4)
    assert model.predict([]) == []
    for wrong in (model.classify, model.generate):
        with pytest.raises(RecipeError):
            wrong("a text")
    with pytest.raises(RecipeError, match="predict: this model was tuned with classify"):
        load(save_run(tmp_path / "labels", Full(), Classify(output="linear"), kind=kind)).predict("a text")
    assert main(["ask", str(run), TEXTS[0], "--offline", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number"] == pytest.approx(numbers[0], abs=1e-5)
    engine, bugs = engine_over({"run": [run]})
    assert engine.whole("run", "values", TEXTS).result(60) == pytest.approx(numbers, abs=1e-5)
    engine.close(10)
    assert bugs == []
    folder = run / "model"
    (tmp_path / "merged").mkdir()
    write_merged(merged(folder, read_manifest(folder), offline=True), folder, tmp_path / "merged")
    usage = read_usage(tmp_path / "merged")
    assert usage is not None
    assert usage.function(tmp_path / "merged")(list(TEXTS)) == pytest.approx(numbers, abs=1e-4)


def test_a_number_is_read_from_json_and_from_text_and_anything_else_is_said():
    columns = {"text": "text", "target": "y"}
    read = Regress().examples(rows(text=["a", "b", "c"], y=[1, "-2.5", " 3e1 "]), group="", columns=columns)
    assert [example.number for example in read] == [1.0, -2.5, 30.0]
    for value in ("3,5", "1_000", "nan", True, "three", None, 10**400):
        with pytest.raises(RowError, match=r"rows.jsonl:2: column 'y' must be a finite number, with a point before"):
            Regress().examples(rows(text=["a", "b"], y=[1, value]), group="", columns=columns)


@pytest.mark.parametrize(
    ("values", "objective"),
    [
        ([i / 7 for i in range(60)], "regress"),
        ([f"{i / 7:.2f}" for i in range(60)], "regress"),  # as csv has them
        ([i % 5 + 1 for i in range(60)], "classify"),  # stars
        ([f"{i % 10 / 2}" for i in range(60)], "classify"),  # half stars
        ([i % 10 / 2 for i in range(60)], "regress"),  # of JSON, where a fraction is no label
        (["good", "bad"] * 30, "classify"),
    ],
)
@pytest.mark.parametrize("name", ["score", "label"])
def test_a_column_of_many_numbers_is_detected_and_one_of_stars_stays_labels(name: str, values: list, objective: str):
    table = rows(**{"text": [f"some text of row {i}" for i in range(60)], name: values})
    try:
        found = detect(table).objective
    except DataError as error:  # the name `score` alone makes no label
        found = "classify" if "kind: classify" in str(error) else "none"
    assert found == objective


def test_whole_numbers_named_like_labels_are_codes_and_named_like_quantities_are_a_scale():
    texts = [f"some text of row {i}" for i in range(200)]
    codes = [i % 77 for i in range(200)]
    assert detect(rows(text=texts, label=codes)).objective == "classify"
    assert detect(rows(text=texts, score=codes)).columns == {"text": "text", "target": "score"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.0, "3"), (2.5, "2.5"), (float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")],
)
def test_a_prediction_is_stored_with_all_its_digits_even_if_it_is_not_finite(number: float, text: str):
    assert as_text(number) == text
