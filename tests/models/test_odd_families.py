"""Families whose attention or layers lie otherwise than most: the same states, or a refusal that says why."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.errors import ModelError
from tunesmith.models import lm_head as head
from tunesmith.models.attention.packed import states_alone
from tunesmith.models.batch import pack
from tunesmith.models.families import positions_of
from tunesmith.models.generation import generate
from tunesmith.models.lm_head import sum_nll
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.loading.quantization import left_whole
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import merge_adapter
from tunesmith.models.measurements import difference, states_together
from tunesmith.models.mlm_head import own_head
from tunesmith.models.policy import Policy
from tunesmith.models.profile import bypassed_layers
from tunesmith.techniques import Lora, Prefix, Prompt

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}


def network(name: str, **config: Any) -> Any:
    """A random decoder whose numbers are large enough to tell."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**config)).eval()
    with torch.no_grad():
        for value in made.parameters():
            if value.dim() > 1:
                value.normal_(0, 0.2)
    return made


ODD = {
    "mpt": ("MptConfig", {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 16,
            "attention_types": [[["global", "local"], 1]], "eos_token_id": 2, "bos_token_id": 1,
        },
    ),
}  # fmt: skip
MIXTRAL = ("MixtralConfig", {**GROUPED, "num_local_experts": 4})


@pytest.mark.parametrize("kind", ODD)
def test_padding_is_not_counted_where_a_family_counts_places(kind: str):
    name, config = ODD[kind]
    made = network(name, **config)
    policy = Policy.over(made, family="decoder", reference=nullcontext)
    policy.train(False)
    shared = list(range(3, 27))
    prompts = [shared + list(range(40, 40 + more)) for more in (25, 9, 31)]
    with torch.inference_mode():
        found = generate._prefill(policy, prompts).last
        for row, prompt in enumerate(prompts):
            alone = made.base_model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
            assert torch.allclose(found[row], alone, atol=1e-4)


def test_the_context_ends_where_a_longer_row_would_change_the_positions_of_all_others():
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [3.0, 5.0, 7.0, 9.0],
    }  # fmt: skip
    made = network("LlamaConfig", **GROUPED, max_position_embeddings=512, rope_parameters=rope)
    context = positions_of(made.config.to_dict())
    assert context == 64
    policy = Policy.over(made, family="decoder", reference=nullcontext)
    policy.train(False)
    rows = [list(range(3, 3 + length)) for length in (12, context, context + 1)]
    for chosen, equal in ((rows[:2], True), (rows, False)):
        together = states_together(policy, chosen, share=False)
        alone = [states_alone(made, row) for row in chosen]
        assert (difference(together, alone) < 1e-4) == equal
    assert positions_of({"max_position_embeddings": 512, "rope_parameters": {"full_attention": rope}}) == 64


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("JetMoeConfig", {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("DiffLlamaConfig", {"num_attention_heads": 4}),
    ],
)
def test_several_answers_are_those_of_one_where_a_layer_attends_to_other_values_than_it_caches(name: str, more: Any):
    made = network(name, **{**GROUPED, **more})
    policy = Policy.over(made, family="decoder", reference=nullcontext)
    policy.train(False)
    prompts = [list(range(5, 30)), list(range(40, 52))]
    with torch.inference_mode():
        state = generate._prefill(policy, prompts)
        state.spread(2, policy)
        tokens = torch.tensor([[60], [61], [62], [63]])
        found = state.feed(policy, tokens, torch.ones_like(tokens, dtype=torch.bool))[:, -1]
        for row, token in enumerate(tokens[:, 0].tolist()):
            alone = made.base_model(input_ids=torch.tensor([[*prompts[row // 2], token]])).last_hidden_state[0, -1]
            assert torch.allclose(found[row], alone, atol=1e-4)


def test_windows_that_stand_in_masks_alone_are_kept():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    made = network("Qwen2MoeConfig", **GROUPED, **experts, **windows, shared_expert_intermediate_size=16)
    policy = Policy.over(made, family="decoder", reference=nullcontext)
    policy.train(False)
    rows = [list(range(3, 33)), list(range(50, 70))]
    batch = pack([Tokens(row, [False] + [True] * (len(row) - 1)) for row in rows])
    with torch.no_grad():
        wanted = 0.0
        for row in rows:
            logits = made(input_ids=torch.tensor([row])).logits[0, :-1]
            wanted += torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum").item()
        assert policy.sum_nll(batch).item() == pytest.approx(wanted, rel=1e-5)


def test_a_prefix_is_refused_where_keys_are_of_several_sizes():
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    more = {"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1}
    made = network("DeepseekV3Config", **{**GROUPED, "num_key_value_heads": 4}, **sizes, **experts, **more)
    assert "keys of several sizes" in Prefix().refusal(made, family="decoder")
    assert Prefix().refusal(network("LlamaConfig", **GROUPED), family="decoder") == ""


def test_a_prefix_has_the_size_of_keys_whose_heads_have_another_name_in_the_configuration():
    attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}
    experts = {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}
    made = network(
        "DbrxConfig", vocab_size=320, d_model=32, n_layers=2, n_heads=4, max_seq_len=512, attn_config=attention,
        ffn_config=experts,
    )  # fmt: skip
    own = Prefix(tokens=4).adapt(made, family="decoder", keep_reference=False, start=[5, 6, 7, 8])
    assert [tuple(keys.shape) for keys, _ in own.virtual.past(made)] == [(1, 2, 4, 8)] * 2


def test_virtual_tokens_are_refused_where_a_router_looks_ids_up(monkeypatch: pytest.MonkeyPatch):
    made = network("LlamaConfig", **GROUPED)
    forward = made.base_model.forward

    def hashed(input_ids: Any = None, **given: Any) -> Any:
        return forward(input_ids=input_ids.reshape(input_ids.shape), **given)

    monkeypatch.setattr(made.base_model, "forward", hashed)
    assert "so PEFT cannot put virtual tokens in front of them" in Prompt().refusal(made, family="decoder")


def test_experts_that_share_a_parameter_take_plain_updates_alone():
    name, config = MIXTRAL
    made = network(name, **config)
    assert Lora().refusal(made, family="decoder") == ""
    assert Lora(targets="q_proj", dora=True).refusal(made, family="decoder") == ""
    for technique, key in ((Lora(dora=True), "technique.dora"), (Lora(dropout=0.1), "technique.dropout")):
        assert technique.refusal(made, family="decoder").startswith(f"{key}: PEFT does not support it for experts")


def test_adapters_of_layers_that_share_a_weight_are_not_merged():
    made = network(
        "ZambaConfig", **SIZES | {"num_hidden_layers": 4}, num_key_value_heads=4, attention_hidden_size=64,
        attention_head_dim=16, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], n_mamba_heads=2,
        mamba_dt_rank=4, mamba_d_state=8, use_mamba_kernels=False,
    )  # fmt: skip
    own = Lora(rank=2, targets="gate_proj").adapt(copy.deepcopy(made), family="decoder", keep_reference=False)
    with pytest.raises(ModelError, match="zamba: layers of this family share weights, .* cannot be merged; use the"):
        merge_adapter(own.network, own.adapter)
    own = Lora(rank=2, targets="linear").adapt(made, family="decoder", keep_reference=False)
    assert merge_adapter(own.network, own.adapter) is made


def test_experts_that_would_stay_whole_are_not_loaded_in_four_bits(tmp_path: Path, tiny_llama: Path):
    pytest.importorskip("bitsandbytes")
    name, config = MIXTRAL
    network(name, **config).save_pretrained(tmp_path)
    for file in tiny_llama.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="experts in shared parameters, which bitsandbytes does not quantize"):
        load_base(str(tmp_path), options=LoadOptions(quantize="nf4"))
    assert left_whole(network("LlamaConfig", **GROUPED)) == ""


def test_a_masked_head_of_another_build_is_not_taken(tmp_path: Path):
    torch.manual_seed(0)
    made = transformers.AutoModelForMaskedLM.from_config(transformers.NomicBertConfig(**SIZES)).eval()
    made.save_pretrained(tmp_path)
    with quiet():
        body = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert own_head(body, tmp_path) is None


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch):
    states, weight = torch.randn(5, 8), torch.randn(12, 8, requires_grad=True)
    wanted = sum_nll(states, weight, None, torch.arange(5)).item()
    monkeypatch.setattr(head.torch, "zeros_like", None)
    with torch.no_grad():
        assert sum_nll(states, weight, None, torch.arange(5)).item() == pytest.approx(wanted)


def test_block_diagonal_layers_get_no_adapter():
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "qk_rope_head_dim": 8, "q_lora_rank": 16}
    heads |= {"o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
    made = network("DeepseekV4Config", **SIZES, **experts, **heads)
    diagonal = {name for name, _ in made.named_modules() if name.endswith("o_a_proj")}
    assert len(diagonal) == 2
    assert bypassed_layers(made) == diagonal
    policy = Lora(rank=2).adapt(made, family="decoder", keep_reference=False)
    policy.train(True)
    policy.sum_nll(pack([Tokens(list(range(3, 27)), [False] + [True] * 23)])).backward()
    learned = {name for name, value in policy.network.named_parameters() if value.grad is not None}
    assert any("o_b_proj" in name for name in learned)
    assert not any("o_a_proj" in name for name in learned)
