"""Techniques: which parameters are trained. A new one is a file in this package, and its name in `AnyTechnique`."""

from typing import Any, get_args

from tunesmith.techniques.base import Technique
from tunesmith.techniques.full import Full
from tunesmith.techniques.ia3 import Ia3
from tunesmith.techniques.lora import Lora
from tunesmith.techniques.p_tuning import PTuning
from tunesmith.techniques.prefix_tuning import Prefix
from tunesmith.techniques.prompt_tuning import Prompt

AnyTechnique = Full | Lora | Ia3 | Prompt | Prefix | PTuning
TECHNIQUES: tuple[type[AnyTechnique], ...] = get_args(AnyTechnique)

# Names for a technique with an option set, and other spellings of a technique's name.
SHORTHANDS: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "dora": True},
    "rslora": {"kind": "lora", "rslora": True},
    "qlora": {"kind": "lora", "quantize": "nf4"},
    "ptuning": {"kind": "p-tuning"},
}

__all__ = [
    "SHORTHANDS",
    "TECHNIQUES",
    "AnyTechnique",
    "Full",
    "Ia3",
    "Lora",
    "PTuning",
    "Prefix",
    "Prompt",
    "Technique",
]
