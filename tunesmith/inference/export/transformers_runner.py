"""Inference with plain transformers and PEFT, to compare exports: no code of Tunesmith between ids and answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.tokenization.messages import Message
from tunesmith.models.loading import quantization as four_bit
from tunesmith.models.loading.load import in_memory
from tunesmith.models.loading.locate import AS_THEY_ARE, LoadOptions
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import generative_class, reading_text, without_missing_packages
from tunesmith.progress import track


class Plain:
    """A decoder loaded by transformers, with an optional adapter loaded by PEFT."""

    def __init__(self, folder: Path, *, adapter: Path | None = None, options: LoadOptions = AS_THEY_ARE) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        with quiet():
            self._network: Any = _opened(generative_class(folder), folder, adapter, in_memory(options, "decoder"))
            self._tokenizer: Any = AutoTokenizer.from_pretrained(adapter or folder, local_files_only=True)
        self._network.eval()
        # Under an adapter the generation_config of the base remains in effect.
        self._how: dict[str, Any] = {} if adapter is None else {"repetition_penalty": 1.0}
        self._virtual = adapter is not None and self._network.active_peft_config.is_prompt_learning
        self._network = reading_text(self._network, where=str(folder))
        if adapter is not None and (adapter / "generation_config.json").exists():
            self._how["eos_token_id"] = GenerationConfig.from_pretrained(adapter).eos_token_id
        ends = self._how.get("eos_token_id", self._network.generation_config.eos_token_id)
        self._stops = ends if isinstance(ends, list) else [ends]

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Encode each chat with the template in the folder."""
        turns = [[{"role": message.role, "content": message.content} for message in chat] for chat in chats]
        return [
            list(self._tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"])
            for one in turns
        ]

    def ids(self, text: str) -> list[int]:
        """Encode a text with the tokenizer in the folder."""
        return list(self._tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Generate at most `longest` tokens greedily, one prompt after the other."""
        draw = self._token_by_token if self._virtual else self._generated
        tracked = track(prompts, "generating in transformers", unit="rows")
        return [self._tokenizer.decode(draw(ids, longest), skip_special_tokens=True).strip() for ids in tracked]

    def _generated(self, ids: list[int], longest: int) -> list[int]:
        asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        with quiet():
            out = self._network.generate(**asked, **self._how, do_sample=False, max_new_tokens=longest)
        return list(out[0, len(ids) :].tolist())

    def _token_by_token(self, ids: list[int], longest: int) -> list[int]:
        """Generate with forward passes: with virtual tokens, `generate` of PEFT 0.21 differs from its own forward."""
        whole = list(ids)
        while len(whole) < len(ids) + longest and (len(whole) == len(ids) or whole[-1] not in self._stops):
            asked = {"input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole), dtype=torch.int64)}
            with quiet():
                whole.append(int(self._network(**asked).logits[0, -1].argmax()))
        return whole[len(ids) :]


def _opened(kind: Any, folder: Path, adapter: Path | None, arguments: dict[str, Any]) -> Any:
    """Load the network of a folder, with the adapter if there is one."""
    from peft import PeftModel

    with without_missing_packages():
        network = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **arguments)
    if "quantization_config" in arguments:
        four_bit.normalize_quantized(network)  # otherwise some CPUs use a coarser arithmetic, unrelated to the adapter
    return network if adapter is None else PeftModel.from_pretrained(network, str(adapter))


@torch.inference_mode()
def pooled_states(
    folder: Path, rows: Sequence[list[int]], *, adapter: Path | None, family: str, options: LoadOptions = AS_THEY_ARE
) -> Tensor:
    """Compute pooled states with transformers: the last state of a decoder, the mean of the states of an encoder.

    Args:
        folder: the model folder.
        rows: token ids, [B] lists.
        adapter: folder of an adapter, or None.
        family: decoder or encoder.
        options: dtype and quantization.

    Returns:
        States [B, D].
    """
    from transformers import AutoModel, AutoModelForMultimodalLM

    kind: Any = AutoModel
    # The adapter of a decoder names the layers of the class that generates, and PEFT applies it to that class only.
    if family == "decoder" and (adapter is not None or generative_class(folder) is AutoModelForMultimodalLM):
        kind = generative_class(folder)
    with quiet():
        network = _opened(kind, folder, adapter, in_memory(options, family))
    network = reading_text(network.eval(), where=str(folder))
    outputs: list[Tensor] = []
    inner = getattr(network, "get_base_model", lambda: network)().base_model
    inner.register_forward_hook(lambda _, __, out: outputs.append(out.last_hidden_state))
    found = []
    for ids in track(rows, "reading in transformers", unit="rows"):
        with quiet():  # PEFT passes the prefix under an argument name that transformers has deprecated
            network(input_ids=torch.tensor([ids]))
        states = outputs.pop()[0, -len(ids) :]
        found.append(states[-1] if family == "decoder" else states.mean(dim=0))
    return torch.stack(found)
