"""(IA)^3: PEFT's numbers and files, and factors that start at one and are not drawn to zero."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForCausalLM

from tests.bases import base, documents, encoded, farthest, folder, gradients, policy
from tests.tiny import DECODERS, ENCODERS, HIDDEN
from tunesmith.errors import RecipeError
from tunesmith.models.batch import collate, pack
from tunesmith.techniques import Ia3
from tunesmith.training.optim import TrainingPlan, make_optimizer

IDS = torch.arange(6, 26)[None]


def plain(kind: str) -> torch.nn.Module:
    return (AutoModelForCausalLM if kind in DECODERS else AutoModel).from_pretrained(folder(kind))


@pytest.mark.parametrize("kind", DECODERS)
def test_losses_and_gradients_are_those_of_peft(kind: str):
    made = policy(kind, Ia3(), lively=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(plain(kind), IA3Config(task_type="CAUSAL_LM"))
    moving = {name.removeprefix("base_model.model."): p for name, p in theirs.named_parameters() if p.requires_grad}
    ours = dict(made.trainable())
    assert moving.keys() == ours.keys()
    with torch.no_grad():
        for name, value in moving.items():
            value.copy_(ours[name])
    (one,) = encoded(kind, 1)[0].sequences
    labels = torch.tensor([[i if learn else -100 for i, learn in zip(one.ids, one.learn, strict=True)]])
    loss = theirs(input_ids=torch.tensor([one.ids]), labels=labels).loss * one.learned
    loss.backward()
    found = made.sum_nll(pack([one]))
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert farthest(gradients(made), {name: p.grad for name, p in moving.items()}) < 1e-4


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_states(kind: str, tmp_path: Path):
    made, batch = policy(kind, Ia3(), lively=0.2), collate(documents(kind, "hi there"), share=False)
    Ia3().save(made, tmp_path)
    restored = Ia3().restore(base(kind).network, tmp_path, family=made.family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        opened = PeftModel.from_pretrained(plain(kind), tmp_path).get_base_model().base_model
    with torch.no_grad():
        ours, untuned = made.states(batch), base(kind).network.base_model(input_ids=batch.ids[None])
        assert torch.equal(restored.states(batch), ours)
        assert torch.allclose(opened(input_ids=batch.ids[None]).last_hidden_state[0], ours, atol=1e-5)
        assert not torch.allclose(untuned.last_hidden_state[0], ours, atol=1e-2)


def test_untrained_factors_change_nothing_and_can_be_switched_off():
    before = base("llama").network(input_ids=IDS).logits
    fresh, lively = policy("llama", Ia3()), policy("llama", Ia3(), lively=0.5)
    assert torch.equal(fresh.network(input_ids=IDS).logits, before)
    with lively.reference():
        assert torch.equal(lively.network(input_ids=IDS).logits, before)


def test_keys_values_and_the_inner_activations_are_scaled():
    found = {name.split(".")[4]: value.shape for name, value in policy("llama", Ia3()).trainable()}
    assert found == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}


def test_factors_are_not_drawn_to_zero():
    made = policy("llama", Ia3())
    made.head = torch.nn.Linear(HIDDEN, 2)
    (factors, decay, bias) = make_optimizer(made, TrainingPlan(steps=1, learning_rate=3e-3)).param_groups
    assert (factors["weight_decay"], decay["weight_decay"], bias["weight_decay"]) == (0.0, 0.01, 0.0)
    assert decay["times"] * 3e-3 == pytest.approx(1e-3)  # the head's own rate, not the factors' larger one


def test_layers_may_be_named():
    technique = Ia3(targets=("q_proj", "up_proj"), feedforward=("up_proj",))
    found = {name.split(".")[4]: value.shape for name, value in policy("llama", technique).trainable()}
    assert found == {"q_proj": (32, 1), "up_proj": (1, HIDDEN)}


@pytest.mark.parametrize("targets", [(), ("q_proj",)])
def test_what_is_scaled_where_it_reads_must_be_among_the_targets(targets: tuple[str, ...]):
    with pytest.raises(ValidationError, match="feedforward: up_proj is not among targets; name it in both"):
        Ia3(targets=targets, feedforward=("up_proj",))


def test_a_weight_of_both_embeddings_takes_no_factor():
    said = Ia3(targets="word_embeddings").refusal(base("bert").network, family="encoder")
    assert said.startswith("technique.targets: no layer is called 'word_embeddings'")  # embeddings take no factor
    said = Ia3(targets="k_proj,lm_head").refusal(base("llama").network, family="decoder")
    assert said.startswith("technique.targets: lm_head shares its weight with the model's other embedding")


def test_a_layer_that_the_model_does_not_have_is_the_recipes_fault():
    with pytest.raises(RecipeError, match=r"^technique\.targets: \('query',\): .*not found.*; leave it out$"):
        policy("llama", Ia3(targets=("query",)))


def test_a_family_whose_layers_nobody_has_named_is_refused_with_the_nearest_that_works():
    network = base("llama").network
    network.config.model_type = "newcomer"
    assert "nearest that works: lora" in Ia3().refusal(network, family="decoder")
    assert Ia3(targets=("k_proj",)).refusal(network, family="decoder") == ""
