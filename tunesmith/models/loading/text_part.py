"""The text part of multimodal checkpoints: loaded as a decoder, adapted and written back under the checkpoint's names.

A checkpoint that reads images or sound besides text is a text decoder, its output layer, and other towers. Only the
first two are loaded. `TextPart.tree` is the checkpoint's own class without the other towers: it translates the names in
the files, as transformers does for the whole, and adapters are put into it, so that PEFT finds them over the whole
checkpoint. The decoder is a causal language model that shares all its layers with the tree.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key, revert_weight_conversion
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from tunesmith.errors import ModelError
from tunesmith.models.loading.checkpoint import save_tensors
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.weight_files import INDEX, open_safetensors, read_json, weight_map

# Files of a processor, which turns images and sound into inputs; a written checkpoint gets a copy of each.
PROCESSOR_FILES = ("*processor_config.json", "chat_template.json")
# What transformers notes on a quantized network, and reads when it is dequantized.
QUANTIZED = ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method")
ATTRIBUTE = "text_part"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Source of a text part: the checkpoint, and how the part is stored there."""

    folder: Path  # the checkpoint
    tree: Any  # the checkpoint's class without its other towers; shares its layers with the decoder
    names: frozenset[str]  # tensors of the text part, by their names in the files
    files: tuple[Path, ...]  # the files that these tensors are in


def text_config(config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """Return the configuration of the text decoder in a multimodal checkpoint; None if it has none.

    Args:
        config: contents of config.json.
    """
    kind = config.get("model_type")
    if kind not in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return None
    whole = CONFIG_MAPPING[str(kind)].from_dict(dict(config))
    text: PreTrainedConfig = whole.get_text_config(decoder=True)
    decodes = not (whole.is_encoder_decoder or text.is_encoder_decoder)
    return text if decodes and text is not whole else None


def generative_class(folder: Path) -> Any:
    """Return the automatic class of transformers that opens the whole checkpoint in a folder and generates text.

    Args:
        folder: the folder of a decoder or a multimodal checkpoint.
    """
    config = read_json(folder / "config.json", where=str(folder))
    return AutoModelForCausalLM if text_config(config) is None else AutoModelForMultimodalLM


def part_of(network: Any) -> TextPart | None:
    """Return the checkpoint that a decoder is the text part of; None if it is a complete model."""
    part: TextPart | None = getattr(network, ATTRIBUTE, None)
    return part


def adapter_tree(network: Any) -> Any:
    """Return the model under whose names PEFT stores adapters: the network, or the checkpoint it is a part of."""
    part = part_of(network)
    return network if part is None else part.tree


def names_in_tree(network: Any, names: Iterable[str]) -> set[str]:
    """Return the names that modules of a network have in its adapter tree."""
    titles = {id(module): name for name, module in adapter_tree(network).named_modules()}
    return {titles[id(network.get_submodule(name))] for name in names}


def share_head(network: Any) -> None:
    """Give a decoder the output layer of its tree, in which PEFT may just have put or removed an adapter."""
    if (part := part_of(network)) is not None and (head := _output_layer(part.tree)) is not _output_layer(network):
        network.set_output_embeddings(head)


def merge_adapter(network: Any, wrapped: Any) -> Any:
    """Merge the adapter of PEFT's model around the network's tree into the weights, and return the network.

    Raises:
        ModelError: adapted layers share a weight, as in Zamba; merging would add the updates of all of them to it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    weights = [id(weight) for each in layers if (weight := getattr(each.get_base_layer(), "weight", None)) is not None]
    if len(set(weights)) < len(weights):
        raise ModelError(
            f"{network.config.model_type}: layers of this family share weights, so an adapter of each of them cannot "
            "be merged; use the adapter itself, or tune with technique: full"
        )
    whole = wrapped.merge_and_unload()
    if part_of(network) is None:
        return whole
    share_head(network)
    return network


def load_text_part(folder: Path, *, where: str, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load the text part of a checkpoint as a decoder; nothing of the other towers is read.

    Args:
        folder: the checkpoint.
        where: its name, for messages.
        arguments: dtype, device and quantization, as arguments of `from_pretrained`.

    Returns:
        The decoder, with its TextPart, and transformers' loading info.

    Raises:
        ModelError: if the checkpoint has no text decoder with an output layer, or a file is damaged.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    whole_class = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)]
    tree_class = _text_only(whole_class, where=where)
    with torch.device("meta"):
        outline = tree_class(config)
    files = weight_map(folder, where=where)
    names = stored_names(outline, files)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(open_safetensors(file, where=where)) for file in {files[n] for n in names}}
        tree, info = tree_class.from_pretrained(
            None,
            config=config,
            state_dict={name: opened[files[name]].get_slice(name) for name in names},  # read when it is needed
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    tree.__class__ = whole_class
    if (folder / "generation_config.json").is_file():
        tree.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    decoder = decoder_of(tree, where=where)
    decoder.name_or_path = tree.name_or_path = str(folder)
    setattr(
        decoder, ATTRIBUTE, TextPart(folder, tree, frozenset(names), tuple(sorted({files[name] for name in names})))
    )
    return decoder.eval(), info


def stored_names(tree: Any, names: Iterable[str]) -> list[str]:
    """Return the names of stored tensors that transformers would read into a model.

    Args:
        tree: the model; its weights may be on the meta device.
        names: names in the files.
    """
    mapping = get_model_conversion_mapping(tree)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    expected = tree.state_dict()

    def is_read(name: str) -> bool:
        # As in transformers' own loader, a name that the model has is not renamed to one that it has not.
        renamed, _ = rename_source_key(name, renamings, converters, tree.base_model_prefix, expected)
        return renamed in expected or name in expected

    return sorted(name for name in names if is_read(name))


def _text_only(whole_class: Any, *, where: str) -> Any:
    """Return a subclass that removes every tower but the text decoder from itself, before any weight is read."""

    def init(self: Any, config: Any, *inputs: Any, **options: Any) -> None:
        with without_missing_packages():
            whole_class.__init__(self, config, *inputs, **options)
        _drop_other_towers(self, where=where)

    # transformers chooses its renamings by the name of the class, and applies none to classes of other packages.
    return type(whole_class.__name__, (whole_class,), {"__init__": init, "__module__": whole_class.__module__})


@contextmanager
def without_missing_packages() -> Iterator[None]:
    """Enter a context in which `AutoModel` makes an empty module of a tower whose package is not installed.

    Text needs none of them: Gemma 3n's images need timm.
    """
    auto: Any = AutoModel
    make = auto.from_config

    def from_config(config: Any, *inputs: Any, **options: Any) -> Any:
        try:
            return make(config, *inputs, **options)
        except ImportError:
            return nn.Module()

    auto.from_config = from_config
    try:
        yield
    finally:
        del auto.from_config  # the method that it inherits


def _drop_other_towers(tree: Any, *, where: str) -> None:
    """Remove all modules and parameters but the text decoder and the output layer."""
    name, text = _find_text(tree, where=where)
    parents = [tree.get_submodule(".".join(name.split(".")[:depth])) for depth in range(name.count(".") + 1)]
    kept = {id(module) for module in (*parents, text, _output_layer(tree))}
    for parent in parents:
        for child, module in list(parent.named_children()):
            if id(module) not in kept:
                setattr(parent, child, None)
        for own, _ in list(parent.named_parameters(recurse=False)):
            setattr(parent, own, None)
    tree.all_tied_weights_keys = tree.get_expanded_tied_weights_keys(all_submodels=True)


def _find_text(tree: Any, *, where: str) -> tuple[str, Any]:
    """Return name and module of the outermost model inside this one that has the text configuration."""
    config = tree.config.get_text_config(decoder=True)
    for name, module in tree.named_modules():
        if name and isinstance(module, PreTrainedModel) and isinstance(module.config, type(config)):
            if _output_layer(tree) is None:
                break
            return name, module
    raise ModelError(
        f"{where}: {tree.config.model_type} has no text decoder that can be separated; choose its text-only version"
    )


def _output_layer(network: Any) -> Any:
    """Return the output layer of a model, or of the model directly inside that has one; None if there is none."""
    models = (module for module in network.modules() if isinstance(module, PreTrainedModel))
    return next((layer for model in models if (layer := model.get_output_embeddings()) is not None), None)


@torch.inference_mode()
def reading_text(network: Any, *, where: str) -> Any:
    """Return the network, or its text decoder: Llama 4's class in transformers 5.24 fails on text without images.

    Args:
        network: a network in transformers' class, possibly with an adapter of PEFT; the decoder shares its layers.
        where: its name, for messages.
    """
    try:
        with quiet():
            network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device))
    except AttributeError:
        return decoder_of(getattr(network, "get_base_model", lambda: network)(), where=where)
    return network


def decoder_of(tree: Any, *, where: str) -> Any:
    """Return the causal language model that consists of the text decoder and the output layer of a checkpoint.

    Args:
        tree: the checkpoint in transformers' class, with its other towers or without; it shares its layers.
        where: its name, for messages.

    Raises:
        ModelError: if it has no text decoder with an output layer.
    """
    _, text = _find_text(tree, where=where)
    head = _output_layer(tree)
    if text.get_output_embeddings() is head:  # Llama 4 holds a whole causal language model
        decoder = text
    else:
        decoder = _empty_decoder(text)
        setattr(decoder, decoder.base_model_prefix, text)
        decoder.set_output_embeddings(head)
    decoder.config.tie_word_embeddings = head.weight is text.get_input_embeddings().weight
    decoder.generation_config = tree.generation_config
    for name in QUANTIZED:
        if hasattr(tree, name):
            setattr(decoder, name, getattr(tree, name))
    return decoder


def _empty_decoder(text: Any) -> Any:
    """Return a causal language model for a text decoder, without weights: the family's own class, or ours."""
    config = text.config
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    with torch.device("meta"):
        if kind is not None and kind.config_class is type(config):
            decoder = kind(config)
            if type(getattr(decoder, decoder.base_model_prefix)) is type(text):
                return decoder
        return _causal_class(type(text), type(config))(config)


def _causal_class(text_class: Any, config_class: Any) -> Any:
    """Return a causal language model class around a text decoder whose family has none (Qwen-VL)."""
    family = next(base for base in text_class.__mro__[1:] if issubclass(base, PreTrainedModel))

    def init(self: Any, config: Any) -> None:
        family.__init__(self, config)
        self.model = text_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self: Any, input_ids: Tensor | None = None, logits_to_keep: int | Tensor = 0, **inputs: Any
    ) -> CausalLMOutputWithPast:
        """Compute the logits [B, T, V] of token ids [B, T]."""
        out = self.model(input_ids=input_ids, **inputs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, **{key: value for key, value in out.items() if key == "cache"})

    body = {
        "__init__": init,
        "forward": forward,
        "__module__": text_class.__module__,  # transformers looks there for what the layers support
        "base_model_prefix": "model",
        "config_class": config_class,
        "_tied_weights_keys": {"lm_head.weight": "model.embed_tokens.weight"},
    }
    return type(f"{text_class.__name__}WithHead", (family, GenerationMixin), body)


def save_network(
    network: Any,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a network in the format of transformers; a text part as the whole checkpoint that it belongs to.

    The other towers are copied from the original files bit by bit, each into the shard it was in.

    Args:
        network: a transformers model.
        folder: output directory.
        settings: further entries of config.json.
        weights: all weights by name; None for those of the network.

    Raises:
        ModelError: if a tensor of the text part or of another tower cannot be written under its original name.
    """
    part = part_of(network)
    if part is None:
        for key, value in (settings or {}).items():
            setattr(network.config, key, value)
        network.save_pretrained(folder, state_dict=weights)
        return
    where = str(part.folder)
    text = _stored_tensors(part, where=where)
    files = weight_map(part.folder, where=where)
    sizes = 0
    for file in sorted({*files.values()}):
        with open_safetensors(file, where=where) as opened:
            names = [name for name, place in files.items() if place == file]
            tensors = {name: text[name] if name in text else opened.get_tensor(name) for name in names}
        sizes += sum(tensor.nbytes for tensor in tensors.values())
        save_tensors(tensors, folder / file.name, metadata={"format": "pt"})
    if (part.folder / INDEX).is_file():
        index = {"metadata": {"total_size": sizes}, "weight_map": {name: file.name for name, file in files.items()}}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8", newline="\n")
    _write_config(network, part, folder, settings or {})
    network.generation_config.save_pretrained(folder)
    for pattern in PROCESSOR_FILES:
        for file in part.folder.glob(pattern):
            shutil.copy(file, folder / file.name)


def _stored_tensors(part: TextPart, *, where: str) -> dict[str, Tensor]:
    """Return the tensors of the text part by their names in the files."""
    tensors: Mapping[str, Tensor] = revert_weight_conversion(part.tree, part.tree.state_dict())
    stored = {name: tensor for name, tensor in tensors.items() if name in part.names}
    pointers = {tensor.data_ptr() for tensor in stored.values()}
    # Tied weights are listed under every name, and are in the files under one of them.
    lost = [name for name, tensor in tensors.items() if name not in stored and tensor.data_ptr() not in pointers]
    if lost or len(stored) < len(part.names):
        name = min(lost or part.names - stored.keys())
        raise ModelError(
            f"{where}: {name} cannot be written back under the name it has in the checkpoint; "
            "nearest that works: a technique that leaves an adapter, and --format adapter"
        )
    return stored


def _write_config(network: Any, part: TextPart, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the configuration of the whole checkpoint, with the dtype of the text part."""
    config = read_json(part.folder / "config.json", where=str(part.folder)) | dict(settings)
    dtype = str(network.dtype).removeprefix("torch.")
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if section is config or {"dtype", "torch_dtype"} & section.keys():
            section.pop("torch_dtype", None)
            section["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8", newline="\n")
