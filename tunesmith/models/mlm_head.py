"""The output layer of a masked language model.

Letters: M masked positions, D hidden width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from tunesmith.models.lm_head import sum_nll
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.sharded import run_body

# Names that families give the parts of the same head: linear layer, norm, and the bias of each word.
NAMES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("head.dense", "head.norm", "decoder.bias"),
)
EPSILONS = ("layer_norm_eps", "norm_eps")


class MaskedHead(nn.Module):
    """BERT's masked-LM head over the network's own word embeddings, which are not parameters of the head.

    A linear layer, GELU, a norm, and the product with each word's embedding: Devlin et al. 2018, arXiv 1810.04805.

    Args:
        network: the encoder; supplies the sizes and the embeddings.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        embedding = network.get_input_embeddings()
        config = network.config.to_dict()
        eps = next((float(config[name]) for name in EPSILONS if config.get(name)), 1e-12)
        self.dense = nn.Linear(int(network.config.hidden_size), embedding.embedding_dim)
        self.norm = nn.LayerNorm(embedding.embedding_dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        nn.init.normal_(self.dense.weight, std=float(config.get("initializer_range") or 0.02))
        nn.init.zeros_(self.dense.bias)
        self._words = (embedding,)  # in a tuple, so that torch does not register it as a submodule

    def forward(self, states: Tensor) -> Tensor:
        """Compute logits, [M, D] -> [M, V]."""
        words = self._words[0].weight
        return F.linear(self._transform(states).to(words.dtype), words, self.bias.to(words.dtype))

    def sum_nll(self, states: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum of -log p(target) from states [M, D] and targets [M], a scalar in nats."""
        words = self._words[0].weight
        return sum_nll(self._transform(states).to(words.dtype), words, self.bias.to(words.dtype), targets)

    def _transform(self, states: Tensor) -> Tensor:
        """[M, D] -> [M, E]."""
        transformed: Tensor = self.norm(F.gelu(self.dense(states)))
        return transformed


def own_head(network: Any, folder: Path | None) -> MaskedHead | None:
    """Load the masked-LM head of a checkpoint and compare it with the logits of transformers' own model.

    Args:
        network: the encoder without a head.
        folder: the checkpoint's folder; None if there is not one.

    Returns:
        The head; None if the checkpoint has none, or one of another structure.
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
        except ValueError:  # transformers has no masked-LM class for this family
            return None
    head = MaskedHead(network)
    weights = whole.state_dict()
    for dense, norm, bias in NAMES:
        missing = any(key.startswith((f"{dense}.", f"{norm}.")) for key in info["missing_keys"])
        if {f"{dense}.weight", f"{norm}.weight"} <= weights.keys() and not missing:
            if not _copy_weights(head, {"dense": dense, "norm": norm}, weights):
                return None
            head.bias.data.copy_(weights.get(bias, torch.zeros_like(head.bias)))
            head = head.to(network.device)
            whole = whole.to(network.device).eval()
            probe = torch.arange(1, 9, device=whole.device)[None]
            with torch.no_grad():
                ours = head(run_body(whole, input_ids=probe).last_hidden_state).float()
                theirs = whole(input_ids=probe).logits.float()
            # The tolerance allows for networks in half precision.
            return head if torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2) else None
    return None


@torch.no_grad()
def _copy_weights(head: MaskedHead, names: dict[str, str], weights: dict[str, Tensor]) -> bool:
    """Copy a checkpoint's weights into the head, zeros for a bias it lacks; return False if shapes differ."""
    for ours, theirs in names.items():
        layer = getattr(head, ours)
        if weights[f"{theirs}.weight"].shape != layer.weight.shape:
            return False
        layer.weight.copy_(weights[f"{theirs}.weight"])
        layer.bias.copy_(weights.get(f"{theirs}.bias", torch.zeros_like(layer.bias)))
    return True
