"""A GGUF file as a base: the numbers, the tokenizer and the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from transformers import PreTrainedTokenizerFast

from tunesmith.errors import ModelError
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
}


def gguf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[D, D] rows of queries or keys in the order that GGUF keeps them for rotary positions."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_gguf(base: Base, file: Path, *, pre: str) -> Path:
    config, words = base.network.config, base.tokenizer
    assert isinstance(words, PreTrainedTokenizerFast)
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words.convert_ids_to_tokens(list(range(len(words)))))
    writer.add_token_types([3 if number in words.all_special_ids else 1 for number in range(len(words))])
    model = words.backend_tokenizer.model
    writer.add_token_merges([" ".join(pair) for pair in json.loads(model.__getstate__())["merges"]])
    writer.add_bos_token_id(words.bos_token_id)
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_unk_token_id(words.unk_token_id)
    writer.add_pad_token_id(words.pad_token_id)
    writer.add_chat_template(words.chat_template)
    for name, value in base.network.named_parameters():
        weight = value.detach()
        if "q_proj" in name:
            weight = interleaved(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def original(tiny_llama: Path) -> Base:
    return load_base(str(tiny_llama))


@pytest.fixture(scope="module")
def file(original: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "tiny.gguf", pre="smollm")


def test_a_gguf_file_is_the_same_base_as_the_folder_it_was_made_from(original: Base, file: Path) -> None:
    base = load_base(str(file))
    ids = torch.arange(40)[None]
    assert (base.family, base.folder) == ("decoder", None)
    assert torch.allclose(base.network(ids).logits, original.network(ids).logits, atol=1e-5)
    assert base.fingerprint == original.fingerprint


def test_its_tokenizer_keeps_special_tokens_template_and_length(original: Base, file: Path) -> None:
    words, expected = load_base(str(file)).tokenizer, original.tokenizer
    chat = [{"role": "user", "content": "Hello, World!"}]
    assert words.special_tokens_map == expected.special_tokens_map
    assert words.apply_chat_template(chat, tokenize=False) == expected.apply_chat_template(chat, tokenize=False)
    assert (
        words("<|im_start|>the lazy dog<|im_end|>")["input_ids"]
        == (expected("<|im_start|>the lazy dog<|im_end|>")["input_ids"])
    )
    assert words.model_max_length == 512


def test_digits_stand_apart_where_the_vocabulary_was_learned_so(original: Base, file: Path) -> None:
    def pieces(base: Base) -> list[str]:
        cut = base.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
        return [piece for piece, _ in cut]

    assert pieces(load_base(str(file))) == ["a", "ĠĠ", "1", "2"]
    plain = write_gguf(original, file.parent / "plain.gguf", pre="gpt-2")
    assert pieces(load_base(str(plain))) == ["a", "Ġ", "Ġ12"]


def test_a_base_from_gguf_can_be_saved_and_loaded_as_safetensors(file: Path, tmp_path: Path) -> None:
    base = load_base(str(file), options=LoadOptions(dtype="bfloat16"))
    base.network.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = load_base(str(tmp_path))
    assert base.network.dtype == torch.bfloat16
    assert again.fingerprint == base.fingerprint
    assert again.network.config.rms_norm_eps == 1e-6
    assert "gguf" not in (tmp_path / "config.json").read_text().lower()


def test_a_file_that_is_broken_or_no_gguf_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    broken = tmp_path / "broken.gguf"
    for size, finding in (
        (0, "not a GGUF file"),
        (20, "damaged"),
        (3000, "damaged"),
        (len(whole) - 99, "damaged"),
    ):
        broken.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=finding) as caught:
            load_base(str(broken))
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        load_base(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="second time"):
        load_base(str(file), options=LoadOptions(quantize="nf4"))
