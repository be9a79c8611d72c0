"""The output layer of a masked-language model. Letters: M places, D hidden, E width of an embedding, V words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from tunesmith.model.head import sum_nll
from tunesmith.model.quiet import quiet

# What families call the parts of the same head: a linear layer, a norm, and a bias for each word.
NAMES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("head.dense", "head.norm", "decoder.bias"),
)
EPSILONS = ("layer_norm_eps", "norm_eps")


class MaskedHead(nn.Module):
    """[M, D] -> [M, V]: BERT's head over the network's own word embeddings, which are no numbers of the head.

    Devlin et al. 2018, arXiv 1810.04805: a linear layer, GELU, a norm, and the product with each word's embedding.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        words = network.get_input_embeddings()
        config = network.config.to_dict()
        eps = next((float(config[name]) for name in EPSILONS if config.get(name)), 1e-12)
        self.dense = nn.Linear(int(network.config.hidden_size), words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        nn.init.normal_(self.dense.weight, std=float(config.get("initializer_range") or 0.02))
        nn.init.zeros_(self.dense.bias)
        self._words = (words,)  # inside a tuple, so that torch does not take it for a part of the head

    def forward(self, states: Tensor) -> Tensor:
        """[M, D] -> [M, V] logits."""
        return F.linear(self._told(states), self._words[0].weight, self.bias)

    def sum_nll(self, states: Tensor, targets: Tensor) -> Tensor:
        """[M, D] and [M] -> the sum of -log p(target)."""
        return sum_nll(self._told(states), self._words[0].weight, self.bias, targets)

    def _told(self, states: Tensor) -> Tensor:
        """[M, D] -> [M, E]: what the words are compared with."""
        told: Tensor = self.norm(F.gelu(self.dense(states)))
        return told


def own_head(network: Any, folder: Path | None) -> MaskedHead | None:
    """The head that a checkpoint brings, None where it brings none or one that is built in another way.

    It is checked against the logits of transformers' own model.
    """
    if folder is None:
        return None
    with quiet():
        try:
            whole, info = AutoModelForMaskedLM.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=network.dtype,
            )
        except ValueError:  # a kind of encoder for which there is no such model
            return None
    head, numbers = MaskedHead(network), whole.state_dict()
    for dense, norm, bias in NAMES:
        missing = any(key.startswith((f"{dense}.", f"{norm}.")) for key in info["missing_keys"])
        if {f"{dense}.weight", f"{norm}.weight"} <= numbers.keys() and not missing:
            fits = _fill(head, {"dense": dense, "norm": norm}, numbers)
            head.bias.data.copy_(numbers.get(bias, torch.zeros_like(head.bias)))
            head = head.to(network.device)
            return head if fits and _same_logits(head, whole.to(network.device).eval()) else None
    return None


@torch.no_grad()
def _fill(head: MaskedHead, names: dict[str, str], numbers: dict[str, Tensor]) -> bool:
    """Copy a checkpoint's numbers, a bias that it does without as zero; False where they have another shape."""
    for ours, theirs in names.items():
        layer = getattr(head, ours)
        if numbers[f"{theirs}.weight"].shape != layer.weight.shape:
            return False
        layer.weight.copy_(numbers[f"{theirs}.weight"])
        layer.bias.copy_(numbers.get(f"{theirs}.bias", torch.zeros_like(layer.bias)))
    return True


@torch.no_grad()
def _same_logits(head: MaskedHead, whole: Any) -> bool:
    """Whether the whole model's states through this head are what it says to a few ids; the network may be rounded."""
    probe = torch.arange(1, 9, device=whole.device)[None]
    ours = head(whole.base_model(input_ids=probe).last_hidden_state)
    return torch.allclose(ours.float(), whole(input_ids=probe).logits.float(), rtol=1e-2, atol=1e-2)
