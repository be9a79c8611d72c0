"""Expression of a tuned masked-LM head through transformers' own `...ForMaskedLM`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.mlm_head import NAMES, MaskedHead
from tunesmith.models.sharded import run_body

# Logit of special tokens, which `fill` of Tunesmith never proposes; finite in every dtype.
NEVER = -1e4


@torch.no_grad()
def masked_language_model(model: LocalModel) -> Any | None:
    """Build transformers' own masked language model with the weights of a merged encoder.

    Returns None if the model has no such head, or the family has no class that computes the same.
    """
    from transformers import AutoModelForMaskedLM

    head, network = model.policy.head, model.policy.network
    if not isinstance(head, MaskedHead):
        return None
    config = deepcopy(network.config)
    if config.model_type == "modernbert":  # its head has biases only on request
        config.classifier_bias = config.norm_bias = config.decoder_bias = True
    with quiet():
        try:
            whole: Any = AutoModelForMaskedLM.from_config(config, dtype=network.dtype)
        except ValueError:  # transformers has no masked-LM class for this family
            return None
    weights = whole.state_dict()
    names = next((names for names in NAMES if {f"{name}.weight" for name in names[:2]} <= weights.keys()), None)
    if names is None or names[2] not in weights:
        return None
    dense, norm, bias = names
    tuned = {f"{whole.base_model_prefix}.{name}": value for name, value in network.base_model.state_dict().items()}
    tuned |= {f"{dense}.weight": head.dense.weight, f"{dense}.bias": head.dense.bias}
    tuned |= {f"{norm}.weight": head.norm.weight, f"{norm}.bias": head.norm.bias}
    words = head.bias.clone()
    words[model.template.tokenizer.all_special_ids] = NEVER
    # The bias is stored under two names in some families.
    tuned |= {name: words for name in weights if name == bias or name.endswith("decoder.bias")}
    if {f"{dense}.bias", f"{norm}.bias"} - weights.keys() and (head.dense.bias.any() or head.norm.bias.any()):
        return None
    if any(value.shape != weights[name].shape for name, value in tuned.items() if name in weights):
        return None
    weights.update({name: value for name, value in tuned.items() if name in weights})
    whole.load_state_dict(weights)
    whole.tie_weights()
    return whole.eval() if _computes(whole, network, head, words) else None


def _computes(whole: Any, network: Any, head: MaskedHead, words: Tensor) -> bool:
    """Return whether a masked language model has the logits of network and head, whose bias is `words` [V]."""
    whole.eval()
    probe = torch.arange(1, 9)[None]
    logits = head(run_body(network.eval(), input_ids=probe).last_hidden_state) + (words - head.bias)
    return torch.allclose(whole(input_ids=probe).logits, logits, rtol=1e-3, atol=1e-3)
