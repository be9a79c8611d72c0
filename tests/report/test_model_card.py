import json
import re

import pytest
import yaml

from tests.report.conftest import SHA, MakeRun, everything
from tunesmith.config import Data, Recipe, save_recipe
from tunesmith.objectives import Classify, Domain, Instruct, Rl
from tunesmith.report.model_card import card, code, fence, front_matter, text
from tunesmith.report.run_data import read_run_data
from tunesmith.techniques import Lora


def matter(written: str) -> dict:
    return yaml.safe_load(written.split("---\n")[1])


def code_blocks(written: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", written, flags=re.DOTALL)


def test_the_front_matter_says_base_licence_library_and_results(make_run: MakeRun):
    found = matter(card(read_run_data(make_run("mine"))))
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "text-classification"
    [entry] = found["model-index"]
    assert entry["name"] == "mine"
    [result] = entry["results"]
    assert result["dataset"] == {
        "name": "reviews.jsonl",
        "type": "reviews.jsonl",
        "split": "test",
        "revision": f"sha256:{SHA['test']}",
    }
    # Of ten rows the tuned model gets eight: F1 of good 8/10, of bad 8/10.
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("accuracy", 0.8), ("f1", 0.8)]


def test_the_hubs_own_reader_accepts_the_card(make_run: MakeRun):
    from huggingface_hub import ModelCard

    data = ModelCard(card(read_run_data(make_run(**everything())))).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [result.metric_value for result in data.eval_results] == [0.8, 0.8]


def test_a_base_of_ones_own_is_neither_linked_nor_licensed(make_run: MakeRun):
    found = front_matter(read_run_data(make_run(model="/home/somebody/base", technique="full")))
    assert "base_model" not in found
    assert "license" not in found
    assert found["library_name"] == "transformers"


def test_measured_facts_stand_in_the_card(make_run: MakeRun):
    written = card(read_run_data(make_run(**everything())))
    assert "| accuracy | 0.600 | 0.800 | +0.200 |" in written
    assert "Loss on general text in nats per token: 2.900 before, 3.000 after (+0.100)" in written
    assert "Not significantly better than base: 0.800 against 0.600" in written
    assert "Oracle scores higher: 1.000 against 0.800" in written
    assert "# reviews.jsonl: classify with lora on smollm2-135m" in written
    assert f"`{SHA['test']}`" in written
    assert "tunesmith tune RUN/recipe.yaml" in written


def test_no_folder_of_the_machine_it_was_made_on_is_given_away(make_run: MakeRun):
    assert "/home/somebody" not in card(read_run_data(make_run()))


def test_text_from_files_cannot_become_markup(make_run: MakeRun):
    written = card(read_run_data(make_run(**everything())))
    assert "<b>cut" not in written
    assert r"\<i\>history\</i\>" in written


def test_a_code_span_and_a_block_survive_back_ticks():
    assert code("a`b``c") == "``` a`b``c ```"
    assert fence("```\nx\n```", "yaml").splitlines()[0] == "````yaml"
    assert text("a|b\n# c") == r"a\|b \# c"


def test_every_snippet_is_python(make_run: MakeRun):
    blocks = code_blocks(card(read_run_data(make_run())), "python")
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    assert "Which label fits the text: bad, good?" in blocks[1]
    assert 'PeftModel.from_pretrained(base, "model")' in blocks[1]


@pytest.mark.parametrize(
    ("objective", "changes", "python", "plain"),
    [
        (Classify(output="linear", labels=("bad", "good")), {"family": "encoder"}, "model.classify", False),
        (Instruct(instruction="Sum up:", max_new_tokens=40), {"objective": "instruct"}, "model.generate", True),
        (Rl(reward="r:s", instruction="Sum up:", max_new_tokens=40), {"objective": "rl"}, "model.generate", True),
    ],
)
def test_the_snippets_fit_the_objective(make_run: MakeRun, objective, changes, python, plain):
    run = make_run(technique="full", **changes)
    save_recipe(Recipe(data=Data(train="r.jsonl"), objective=objective), run / "recipe.yaml")
    blocks = code_blocks(card(read_run_data(run)), "python")
    assert python in blocks[0]
    assert len(blocks) == 1 + plain
    if plain:
        assert "Sum up:\\n\\nyour text" in blocks[1]
        assert "max_new_tokens=40" in blocks[1]
        assert "peft" not in blocks[1]


@pytest.mark.parametrize("written", ["<mask>", {"content": "<mask>", "lstrip": True}, None])
def test_an_encoder_is_asked_to_fill_its_own_mask_token(make_run: MakeRun, written: object):
    run = make_run(family="encoder", objective="domain")
    save_recipe(Recipe(data=Data(train="r.jsonl"), objective=Domain()), run / "recipe.yaml")
    (run / "model").mkdir()
    (run / "model" / "tokenizer_config.json").write_text(json.dumps({"mask_token": written}), encoding="utf-8")
    (block,) = code_blocks(card(read_run_data(run)), "python")
    assert f'model.fill(["your text {"<mask>" if written else "[MASK]"}"])' in block


@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_a_base_that_lay_in_four_bits_does_so_in_the_code_without_tunesmith(make_run: MakeRun, quantize: str):
    run = make_run(objective="instruct")
    recipe = Recipe(data=Data(train="r.jsonl"), objective=Instruct(), technique=Lora(quantize=quantize))
    save_recipe(recipe, run / "recipe.yaml")
    block = code_blocks(card(read_run_data(run)), "python")[1]
    compile(block, "card", "exec")
    assert ("quantization_config=four_bits" in block) == ("BitsAndBytesConfig(" in block) == bool(quantize)
