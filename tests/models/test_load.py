"""Loading base models: what comes out for each family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from tests.tiny import DECODERS, ENCODERS, tiny_decoder, tiny_encoder, tokenizer
from tunesmith.data.tokenization.tokenizer import choose_pad
from tunesmith.errors import ModelError
from tunesmith.models.families import family_of
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import ENCODERS as ENCODER_TYPES
from tunesmith.models.loading.locate import LoadOptions

TEXT = "Hello,  World! 123\n\n45 ~`\\"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny decoder that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_loads_and_gives_its_text_back(kind: str, tmp_path: Path) -> None:
    base = load_base(str(tiny_decoder(tmp_path / kind, kind)))
    ids = base.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    logits = base.network(torch.tensor([ids])).logits
    assert base.family == "decoder"
    assert base.folder == tmp_path / kind
    assert base.tokenizer.decode(ids) == TEXT
    assert base.tokenizer.pad_token_id is not None
    assert logits.shape[:2] == (1, len(ids))
    assert not base.network.training
    assert all(value.requires_grad for value in base.network.parameters())


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_loads_without_a_head(kind: str, tmp_path: Path) -> None:
    base = load_base(str(tiny_encoder(tmp_path / kind, kind)))
    ids = base.tokenizer(TEXT)["input_ids"]
    states = base.network(torch.tensor([ids])).last_hidden_state
    assert base.family == "encoder"
    assert base.tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert base.tokenizer.pad_token == "[PAD]"
    assert states.shape == (1, len(ids), 32)


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
OTHERS = {
    "openai-gpt": transformers.OpenAIGPTConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=4),
}
# transformers makes such a network but cannot run it with a cache, two of them because of their configuration: layers
# of convolution alone, and 4 heads in 3 groups.
BROKEN = {
    "xlstm": transformers.xLSTMConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_heads=4),
    "lfm2": transformers.Lfm2Config(**SMALL, intermediate_size=32, num_key_value_heads=2, layer_types=["conv"]),
    "llama": transformers.LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=3),
}
SAID = {"xlstm": "wrong shape", "lfm2": "get_seq_length", "llama": "size of tensor"}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_decoder_that_does_not_go_on_from_keys_and_values_is_refused(kind: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(OTHERS[kind]).save_pretrained(tmp_path)
    tokenizer(("</s>",), eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{kind} does not support a KV cache, which generation requires; "):
        load_base(str(tmp_path))


@pytest.mark.parametrize("kind", BROKEN)
def test_the_refusal_of_a_decoder_that_transformers_cannot_run_says_what_it_raises(kind: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(BROKEN[kind]).save_pretrained(tmp_path)
    tokenizer(("</s>",), eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"transformers cannot run {kind} .*{SAID[kind]}.*; check its config"):
        load_base(str(tmp_path))


def test_weights_come_in_the_dtype_that_was_asked_for(tiny_llama: Path) -> None:
    network = load_base(str(tiny_llama), options=LoadOptions(dtype="bfloat16")).network
    assert {value.dtype for value in network.parameters()} == {torch.bfloat16}


def test_a_sharded_folder_is_the_same_base(tiny_llama: Path, tmp_path: Path) -> None:
    whole = load_base(str(tiny_llama))
    whole.network.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    whole.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shards = load_base(str(tmp_path / "shards"))
    assert shards.fingerprint == whole.fingerprint
    ids = torch.arange(9)[None]
    assert torch.equal(shards.network(ids).logits, whole.network(ids).logits)


def test_the_fingerprint_ignores_how_the_weights_are_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    plain = load_base(str(tiny_llama))
    half = load_base(str(tiny_llama), options=LoadOptions(dtype="bfloat16"))
    half.network.save_pretrained(tmp_path / "half")
    half.tokenizer.save_pretrained(tmp_path / "half")
    assert len(plain.fingerprint) == 16
    assert half.fingerprint == plain.fingerprint
    assert load_base(str(tmp_path / "half")).fingerprint == plain.fingerprint


def test_the_fingerprint_tells_a_change_in_one_inner_layer(folder: Path) -> None:
    before = load_base(str(folder)).fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_base(str(folder)).fingerprint != before


def test_the_embedding_of_an_end_token_that_is_also_the_padding_still_learns(tiny_llama: Path) -> None:
    base = load_base(str(tiny_llama))
    end = base.tokenizer.eos_token_id
    assert end == base.tokenizer.pad_token_id
    states = base.network.base_model(torch.tensor([[5, end, 7]])).last_hidden_state
    states[0, 1].square().sum().backward()
    assert base.network.get_input_embeddings().weight.grad[end].abs().sum() > 0


def test_a_tokenizer_without_padding_takes_a_spare_special_token() -> None:
    names = ("<|begin|>", "<|end|>", "<|tool|>", "<|reserved_0|>")
    spare = tokenizer(names, bos_token="<|begin|>", eos_token="<|end|>")
    choose_pad(spare, rows=320)
    assert spare.pad_token == "<|reserved_0|>"
    unknown = tokenizer(("<s>", "</s>", "<unk>"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    choose_pad(unknown, rows=320)
    assert unknown.pad_token == "<unk>"
    alone = tokenizer(("<|endoftext|>",), eos_token="<|endoftext|>")
    choose_pad(alone, rows=320)
    assert alone.pad_token == "<|endoftext|>"


def test_a_padding_token_that_the_model_has_no_row_for_is_replaced() -> None:
    grown = tokenizer(("<|endoftext|>",), eos_token="<|endoftext|>")
    grown.add_special_tokens({"pad_token": "<new>"})
    choose_pad(grown, rows=320)
    assert grown.pad_token == "<|endoftext|>"


def test_nothing_is_printed_and_the_libraries_speak_again_afterwards(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_base(str(tiny_llama))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_a_bert_that_writes_is_a_decoder() -> None:
    assert family_of({"model_type": "bert", "is_decoder": True}, where="x") == "decoder"
    assert family_of({"model_type": "bert", "is_decoder": False}, where="x") == "encoder"


def test_transformers_knows_every_encoder_of_the_table() -> None:
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    assert all(CONFIG_MAPPING[kind] in MODEL_MAPPING for kind in ENCODER_TYPES)


def test_an_encoder_checkpoint_with_a_head_loads_without_it(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    load_base(str(tiny_bert)).tokenizer.save_pretrained(tmp_path)
    headless = load_base(str(tmp_path)).network
    ids = torch.arange(9)[None]
    expected = AutoModel.from_pretrained(tiny_bert).eval()(ids).last_hidden_state
    assert torch.equal(headless(ids).last_hidden_state, expected)


def test_four_bits_keep_the_fingerprint_and_nearly_the_answers(tiny_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = load_base(str(tiny_llama), options=LoadOptions(quantize="nf4"))
    assert base.fingerprint == load_base(str(tiny_llama)).fingerprint
    assert base.network.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    ids = torch.arange(3, 19)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)(ids).logits.flatten()
    assert torch.corrcoef(torch.stack([plain, base.network(ids).logits.flatten()]))[0, 1] > 0.8


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_the_file_of_a_base_in_four_bits_does_not_stay_in_memory(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = load_base(str(folder), options=LoadOptions(quantize="nf4"))
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert base.network.get_input_embeddings().weight.dtype == torch.float32


def test_penalties_of_a_base_are_not_in_force_and_its_ends_are(folder: Path) -> None:
    page = folder / "generation_config.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"repetition_penalty": 1.3, "temperature": 0.7}))
    made, plain = load_base(str(folder)).network.generation_config, GenerationConfig()
    assert (made.repetition_penalty, made.temperature) == (plain.repetition_penalty, plain.temperature)
    assert made.eos_token_id == json.loads(page.read_text())["eos_token_id"]
