"""The output layer of a cross-encoder: transformers' own classification head with one output.

Letters: B rows, L tokens of the longest row, D hidden width.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tunesmith.errors import ModelError
from tunesmith.models.loading.suppress_output import quiet

ENDING = "ForSequenceClassification"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
# Settings that name the function of a score, of sentence-transformers before version 4 and since.
FORMER, SETTINGS = "sbert_ce_default_activation_function", "sentence_transformers"


class _GivenStates(nn.Module):
    """Stands for the encoder inside transformers' classifier: returns states that are computed already."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        """Return the states [B, L, D], with the pooled ones if the family has a pooler."""
        assert self.states is not None
        pooled = None if self.pooler is None else self.pooler(self.states)
        return BaseModelOutputWithPooling(last_hidden_state=self.states, pooler_output=pooled)


class RelevanceHead(nn.Module):
    """Scores rows by the layers that the network's family has for classification, such as BERT's pooler and classifier.

    The weights of the last layer start at zero, so that all pairs have the same score. A pooler starts as that of the
    base model.

    Args:
        network: the encoder; supplies the sizes and the pooler.
        folder: of a base model that is a cross-encoder itself, whose layers are used as they are; else None.
        share: the first score of every pair, if its layers are new.
    """

    def __init__(self, network: Any, folder: Path | None = None, *, share: float = 0.5) -> None:
        super().__init__()
        whole, body = classifier_of(network, folder)
        pooler = getattr(body, "pooler", None)
        own = getattr(network.base_model, "pooler", None)
        if isinstance(own, nn.Module) and pooler is not None and folder is None:
            pooler.load_state_dict(own.state_dict())
        self.whole = whole
        self._check(body, pooler)
        if folder is None:
            last = last_layer(whole)
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.constant_(last.bias, math.log(share / (1 - share)) if share < 1 else 0.0)
        self.whole.to(device=network.device, dtype=torch.float32)

    @torch.no_grad()
    def _check(self, body: Any, pooler: nn.Module | None) -> None:
        """Put given states in the place of the encoder. Raises ModelError if the family computes something else."""
        probe = torch.arange(1, 9)[None]
        logits, states = self.whole(input_ids=probe).logits[:, 0], body(input_ids=probe).last_hidden_state
        setattr(self.whole, self.whole.base_model_prefix, _GivenStates(pooler))
        if not torch.allclose(self(states, torch.ones_like(probe)), logits, atol=1e-4):
            kind = self.whole.config.model_type
            raise ModelError(f"{kind}: its classifier reads more than the last states; choose a BERT or a ModernBERT")

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """Compute logits [B] of states [B, L, D], where `real` [B, L] is False on padding."""
        body = getattr(self.whole, self.whole.base_model_prefix)
        body.states = states
        try:
            logits: Tensor = self.whole(input_ids=real.long(), attention_mask=real.long()).logits
        finally:
            body.states = None
        return logits.float()[:, 0]


def is_cross_encoder(folder: Path | None, config: dict[str, Any]) -> bool:
    """Return whether the configuration of a model in a folder is that of a classifier with one output."""
    kinds = config.get("architectures") or [""]
    outputs = len(config.get("id2label") or {}) or config.get("num_labels")
    return folder is not None and str(kinds[0]).endswith(ENDING) and outputs == 1


def last_layer(whole: Any) -> nn.Linear:
    """Return the layer that computes the logits: the last linear one outside the encoder."""
    body = getattr(whole, whole.base_model_prefix)
    inner = {id(module) for module in body.modules()}
    layers = [module for module in whole.modules() if isinstance(module, nn.Linear) and id(module) not in inner]
    return layers[-1]


def classifier_of(network: Any, folder: Path | None = None) -> tuple[Any, Any]:
    """Return transformers' classifier with one output for the family of a network, and the encoder in it.

    Its weights are those of a folder, or the same random ones each time.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if folder is not None:
            whole: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
        else:
            config = deepcopy(network.config)
            config.num_labels = 1
            config.problem_type = None
            config._attn_implementation = "eager"
            config.dtype = torch.float32
            whole = AutoModelForSequenceClassification.from_config(config)
    return whole.eval(), getattr(whole, whole.base_model_prefix)


@torch.no_grad()
def cross_encoder(network: Any, head: RelevanceHead) -> Any:
    """Build transformers' own classifier, in float32, from a merged network and its head.

    sentence-transformers opens it as a CrossEncoder, whose scores are the logits after a sigmoid.
    """
    whole, body = classifier_of(network)
    weights = network.base_model.state_dict()
    body.load_state_dict(
        {**body.state_dict(), **{name: weights[name] for name in body.state_dict() if name in weights}}
    )
    whole.load_state_dict({**whole.state_dict(), **head.whole.state_dict()})
    if hasattr(whole.config, FORMER):
        delattr(whole.config, FORMER)
    setattr(whole.config, SETTINGS, {"activation_fn": SIGMOID})
    return whole
