"""Axis B: which numbers move. The visible list, and the shorthands people bring."""

from typing import Any

from tunesmith.techniques.full import Full
from tunesmith.techniques.lora import Lora

TECHNIQUES = (Full, Lora)

# Words that stand for a technique with an option set.
SHORTHANDS: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "dora": True},
    "rslora": {"kind": "lora", "rslora": True},
}

__all__ = ["SHORTHANDS", "TECHNIQUES", "Full", "Lora"]
