"""Expression of a tuned head through transformers' own `...ForSequenceClassification`, without custom code.

The head of Tunesmith is linear in the mean of an encoder's states or in the last state of a decoder. The classes of
transformers apply a pooler with an activation to the first token (BERT), or a layer without bias (Llama). One more
layer of the same architecture computes the logits and places them where these classes read them.

A norm follows that layer. It is made linear by two coordinates with large constants: they alone determine the
variance, so the norm divides the logits by a known number. Activations are undone exactly (gelu(x) - gelu(-x) = x) or
used where they are linear (tanh near 0).

Letters: D width of a state, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.sharded import run_body

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True, slots=True)
class Scales:
    """Sizes that keep every approximation below the rounding error of a dtype."""

    residual: float  # factor of the states, whose residual connection adds to the logits
    constant: float  # size of the constants that determine the variance, relative to the largest logit
    tanh: float  # largest input of a tanh


SCALES = {"f32": Scales(1e-7, 1e3, 1e-3), "bf16": Scales(1e-7, 30, 1e-2), "f16": Scales(1e-4, 30, 3e-2)}
# Multiple of the states that a decoder's last layer adds; the states themselves then vanish in rounding.
DECODER_SCALE = 1e12


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of the parts of an encoder layer that normalizes after each residual connection."""

    layers: str
    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    up: str
    down: str
    norm: str


@dataclass(frozen=True, slots=True)
class HeadNames:
    """Names of the two linear layers of a classification head, and the activation between them."""

    dense: str
    classifier: str
    activation: Literal["tanh", "gelu", "relu"]


BERT = LayerNames(
    "encoder.layer", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
DISTILBERT = LayerNames(
    "transformer.layer", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
    "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip
ROBERTA_HEAD = HeadNames("classifier.dense", "classifier.out_proj", "tanh")
# Families whose classification head reads the first token.
FIRST_TOKEN: Mapping[str, tuple[LayerNames, HeadNames]] = {
    "bert": (BERT, HeadNames("bert.pooler.dense", "classifier", "tanh")),
    "roberta": (BERT, ROBERTA_HEAD),
    "xlm-roberta": (BERT, ROBERTA_HEAD),
    "camembert": (BERT, ROBERTA_HEAD),
    "electra": (BERT, HeadNames("classifier.dense", "classifier.out_proj", "gelu")),
    "distilbert": (DISTILBERT, HeadNames("pre_classifier", "classifier", "relu")),
}


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The layer of a tuned head: logits = weight @ state + bias, calibrated."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]
    labels: tuple[str, ...]
    problem: Problem


def linear_head(model: LocalModel) -> LinearHead | None:
    """Return the head of a model with the calibration temperature folded in; None if it has no single linear head."""
    head = model.policy.head
    if not isinstance(head, nn.Linear):
        return None
    weight, bias = head.weight.detach().float().cpu(), head.bias.detach().float().cpu()
    objective = model.objective
    names = objective.output_names
    if objective.produces == "number":  # the unit of the rows is folded in
        mean, scale = objective.mean_and_scale
        return LinearHead(weight * scale, bias * scale + mean, names, "regression")
    if objective.label_mode is None:
        return LinearHead(weight, bias, names, "regression")
    if objective.label_mode == "multi":
        return LinearHead(weight, bias, names, "multi_label_classification")
    scale = 1 / model.temperature
    return LinearHead(weight * scale, bias * scale, names, "single_label_classification")


def own_network(model: LocalModel, dtype: str = "f32") -> Any | None:
    """Build the network of transformers, in float32, that a merged model with `saved_whole` is saved as.

    The weights will be stored as `dtype`. Returns None if the class of the family computes something else.
    """
    own = model.objective.whole(model.policy)
    return token_classifier(model, dtype) if own is None else own


@torch.no_grad()
def token_classifier(model: LocalModel, dtype: str = "f32") -> Any | None:
    """Build transformers' own token classifier, in float32, that computes the logits of a merged model that tags.

    The weights will be stored as `dtype`. Returns None if the class of the family computes something else.
    """
    from transformers import AutoModelForTokenClassification

    layer = model.policy.head
    assert isinstance(layer, nn.Linear)
    names = model.objective.output_names
    head = LinearHead(layer.weight.detach().float(), layer.bias.detach().float(), names, "regression")
    options: dict[str, Any] = {}
    if model.policy.network.config.model_type == "modernbert":
        if 2 * len(head.labels) >= head.weight.shape[1]:
            return None
        options = {"classifier_bias": True, "classifier_activation": "gelu"}
    whole = _classifier(model, head, {}, auto=AutoModelForTokenClassification, **options)
    whole.config.problem_type = None
    if options:
        _pass_through(whole, head, SCALES[dtype])
    elif isinstance(last := getattr(whole, "classifier", None), nn.Linear):
        last.load_state_dict(layer.state_dict())
    probe = torch.arange(1, 9)[None]
    states = run_body(model.policy.network.base_model, input_ids=probe).last_hidden_state.float()
    same = torch.allclose(whole(input_ids=probe).logits, layer(states), rtol=1e-3, atol=1e-3)
    return whole if same else None


@torch.no_grad()
def sequence_classifier(model: LocalModel, dtype: str) -> Any | None:
    """Build transformers' own classifier, in float32, that computes the logits of a merged model.

    The weights will be stored as `dtype`: f32, f16 or bf16. Returns None if the family has no class that can express
    the head.
    """
    head = linear_head(model)
    network = model.policy.network
    kind = network.config.model_type
    if head is None:
        return None
    count, width = head.weight.shape
    if kind in FIRST_TOKEN:
        layer_names, head_names = FIRST_TOKEN[kind]
        pairs = head_names.activation != "tanh"
        if count > width - 3 or (pairs and 2 * count > width):
            return None
        whole = _classifier(model, head, {_layer_count(network.config): 1})
        _pool_by_attention(whole, head, layer_names=layer_names, head_names=head_names, scales=SCALES[dtype])
        return whole
    if kind == "modernbert" and 2 * count < width:
        options = {"classifier_pooling": "mean", "classifier_bias": True, "classifier_activation": "gelu"}
        whole = _classifier(model, head, {}, **options)
        _pass_through(whole, head, SCALES[dtype])
        return whole
    if kind == "llama" and dtype != "f16" and 2 * count <= network.config.intermediate_size and count < width:
        whole = _classifier(model, head, {"num_hidden_layers": 1}, mlp_bias=True)
        _add_last_layer(whole, head, SCALES[dtype])
        return whole
    return None


def _layer_count(config: Any) -> str:
    """Return the name of the setting that holds the number of layers."""
    return "n_layers" if config.model_type == "distilbert" else "num_hidden_layers"


def _classifier(
    model: LocalModel, head: LinearHead, added: Mapping[str, int], *, auto: Any = None, **options: Any
) -> Any:
    """Build the classifier with the weights of the tuned network; added layers and the head are random."""
    from transformers import AutoModelForSequenceClassification

    network = model.policy.network
    inner = network.base_model
    config = deepcopy(network.config)
    for name, more in added.items():
        setattr(config, name, getattr(config, name) + more)
    for name, option in options.items():
        setattr(config, name, option)
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {label: index for index, label in enumerate(head.labels)}
    config.problem_type = head.problem
    config.dtype = torch.float32
    with quiet():
        whole: Any = (auto or AutoModelForSequenceClassification).from_config(config)
    own = getattr(whole, whole.base_model_prefix)
    shared = own.state_dict()
    shared.update({name: value for name, value in inner.state_dict().items() if name in shared})
    if "mlp_bias" in options:
        shared.update({name: torch.zeros_like(value) for name, value in shared.items() if _is_mlp_bias(name)})
    own.load_state_dict(shared)
    return whole.eval()


def _is_mlp_bias(name: str) -> bool:
    return ".mlp." in name and name.endswith(".bias")


def _zero(layer: Any) -> Any:
    """Set the parameters of a layer to zero and return it."""
    for value in layer.parameters():
        value.zero_()
    return layer


def _pool_by_attention(
    whole: Any, head: LinearHead, *, layer_names: LayerNames, head_names: HeadNames, scales: Scales
) -> None:
    """Set the added layer and the head so that the first token carries the logits of the mean state.

    Queries and keys of zero attend to all tokens alike, so the attention output is the mean of the values.
    """
    count, width = head.weight.shape
    reference, low, high = count, width - 2, width - 1  # coordinates besides those of the labels
    layers = getattr(whole, whole.base_model_prefix).get_submodule(layer_names.layers)
    last, added = layers[-2], layers[-1]
    norm = last.get_submodule(layer_names.norm)
    # Bound of a logit: a normalized state has the length sqrt(D).
    longest = norm.weight.abs().max() * math.sqrt(width) + norm.bias.norm()
    largest = max(float(head.weight.norm(dim=1).max() * longest), 1e-3)
    norm.weight.mul_(scales.residual)
    norm.bias.mul_(scales.residual)
    for name in (layer_names.query, layer_names.key, layer_names.up, layer_names.down):
        _zero(added.get_submodule(name))
    value = _zero(added.get_submodule(layer_names.value))
    value.weight[:count] = head.weight / (largest * scales.residual)
    output = _zero(added.get_submodule(layer_names.output))
    output.weight[range(count), range(count)] = 1
    output.bias[low], output.bias[high] = -scales.constant, scales.constant
    first, second = added.get_submodule(layer_names.attention_norm), added.get_submodule(layer_names.norm)
    first.weight.fill_(1)
    first.bias.zero_()
    _zero(second)
    deviation = scales.constant * math.sqrt(2 / width) * math.sqrt(1 + second.eps)
    second.weight[: count + 1] = deviation
    second.weight[low], second.weight[high] = 1, 1
    size = scales.tanh if head_names.activation == "tanh" else 1.0
    dense = _zero(whole.get_submodule(head_names.dense))
    classifier = _zero(whole.get_submodule(head_names.classifier))
    labels = range(count)
    dense.weight[labels, labels] = size
    dense.weight[labels, reference] = -size
    classifier.weight[labels, labels] = largest / size
    classifier.bias.copy_(head.bias)
    if head_names.activation != "tanh":
        negated = range(count, 2 * count)
        dense.weight[negated] = -dense.weight[:count]
        classifier.weight[labels, negated] = -largest / size


def _pass_through(whole: Any, head: LinearHead, scales: Scales) -> None:
    """Set the head of ModernBERT, which pools by the mean: a linear layer, GELU, a norm and the classifier."""
    count, width = head.weight.shape
    norm = whole.model.final_norm
    largest = max(float(head.weight.norm(dim=1).max() * norm.weight.abs().max()) * math.sqrt(width), 1e-3)
    dense, last, classifier = _zero(whole.head.dense), _zero(whole.head.norm), _zero(whole.classifier)
    dense.weight[:count] = head.weight / largest
    dense.weight[count : 2 * count] = -head.weight / largest
    dense.bias[-1] = scales.constant
    last.weight[: 2 * count] = scales.constant * math.sqrt((1 - 1 / width) / width)
    labels = range(count)
    classifier.weight[labels, labels] = largest
    classifier.weight[labels, range(count, 2 * count)] = -largest
    classifier.bias.copy_(head.bias)


def _add_last_layer(whole: Any, head: LinearHead, scales: Scales) -> None:
    """Set the added layer and the score of Llama: silu(x) - silu(-x) = x gives the logits, and a constant the bias."""
    count, width = head.weight.shape
    norm = whole.model.norm
    added = whole.model.layers[-1]
    largest = max(float(head.weight.norm(dim=1).max() * norm.weight.abs().max()) * math.sqrt(width), 1e-3)
    _zero(added.self_attn)
    added.input_layernorm.weight.fill_(1)
    added.post_attention_layernorm.weight.copy_(norm.weight)
    gate, up, down = (_zero(layer) for layer in (added.mlp.gate_proj, added.mlp.up_proj, added.mlp.down_proj))
    labels, negated = range(count), range(count, 2 * count)
    gate.weight[:count] = head.weight / largest
    gate.weight[count : 2 * count] = -head.weight / largest
    up.bias[: 2 * count] = 1
    down.weight[labels, labels] = DECODER_SCALE
    down.weight[labels, negated] = -DECODER_SCALE
    down.bias[-1] = DECODER_SCALE * scales.constant
    _zero(norm).weight[[*labels, width - 1]] = 1
    score = _zero(whole.score)
    score.weight[labels, labels] = largest * scales.constant / math.sqrt(width)
    score.weight[:, -1] = head.bias / math.sqrt(width)
