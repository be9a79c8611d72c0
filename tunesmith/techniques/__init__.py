"""Techniques: the choice of trainable parameters. The list of all, and the shorthands a recipe may use."""

from typing import Any

from tunesmith.techniques.full import Full
from tunesmith.techniques.ia3 import Ia3
from tunesmith.techniques.lora import Lora
from tunesmith.techniques.p_tuning import PTuning
from tunesmith.techniques.prefix_tuning import Prefix
from tunesmith.techniques.prompt_tuning import Prompt

TECHNIQUES = (Full, Lora, Ia3, Prompt, Prefix, PTuning)

# Names for a technique with an option set, and other spellings of a technique's name.
SHORTHANDS: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "dora": True},
    "rslora": {"kind": "lora", "rslora": True},
    "qlora": {"kind": "lora", "quantize": "nf4"},
    "ptuning": {"kind": "p-tuning"},
}

__all__ = ["SHORTHANDS", "TECHNIQUES", "Full", "Ia3", "Lora", "PTuning", "Prefix", "Prompt"]
