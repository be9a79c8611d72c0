"""Formats of exports, and the precision of the weights in each. No torch."""

from __future__ import annotations

# Mixtures of types in GGUF files, as llama.cpp names them, the finest first.
MIXTURE_NAMES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_nl", "q4_0", "iq4_xs", "q3_k_m", "q2_k")
# The default first. An adapter keeps the precision of training.
DTYPES = {
    "merged": ("f32", "f16", "bf16"),
    "gguf": ("f16", *MIXTURE_NAMES),
    "adapter": ("f32",),
    "compressed-tensors": ("int8", "fp8"),
}
SMALLEST = "smallest"  # instead of a dtype of GGUF: types that are chosen tensor by tensor, and tested
