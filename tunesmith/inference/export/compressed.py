"""Writer of compressed-tensors, the format of vLLM: linear layers with weights of 8 bits, a scale per output channel.

Activations are rounded to 8 bits as well, by the program that runs the model, token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError
from tunesmith.inference.export.formats import keep_thinking_mode
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.quantization import experts
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import part_of, save_network

# Presets of the library.
SCHEMES = {"int8": "W8A8", "fp8": "FP8_DYNAMIC"}


@torch.no_grad()
def compress(model: LocalModel, *, dtype: str) -> Callable[[Path], None]:
    """Round the linear layers of a merged decoder in place; what is not rounded gets bfloat16.

    Args:
        model: the merged model.
        dtype: one of SCHEMES.

    Returns:
        A function that writes the rounded model into a folder.

    Raises:
        RecipeError: some layers of its family would not be rounded.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized

    network: Any = model.policy.network
    output = network.get_output_embeddings()
    linear = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    ignored = [name for name in linear if network.get_submodule(name) is output]
    if experts(network) or len(linear) == len(ignored) or part_of(network) is not None:
        problem = "its layers are experts, transposed, or a part of a larger model"
        raise RecipeError(f"export: {problem}, which this format is not written for; nearest: --format merged")
    keep_thinking_mode(model)
    scheme = preset_name_to_scheme(SCHEMES[dtype], ["Linear"])
    with quiet(), redirect_stderr(StringIO()):  # the library's progress bars
        apply_quantization_config(network, QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignored))
        for module in filter(is_module_quantized, network.modules()):
            low, high = module.weight.aminmax(dim=1, keepdim=True)
            scale, _ = calculate_qparams(low, high, module.quantization_scheme.weights)
            module.weight_scale.copy_(scale)
        compressor = ModelCompressor.from_pretrained_model(network)
        compressor.compress_model(network)
        for name, value in network.named_parameters():
            if value.dtype == torch.float32 and not name.endswith("_scale"):
                value.data = value.data.bfloat16()

    def write(out: Path) -> None:
        with quiet():
            save_network(network, out)
            compressor.update_config(str(out))
        model.template.tokenizer.save_pretrained(out)

    return write
