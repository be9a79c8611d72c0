"""Choice of a model by rule, where nothing is measured."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tunesmith.config.recipe import AnyObjective
from tunesmith.objectives import Classify

ENCODER = "minilm-l6"
DECODER = "smollm2-135m"
ADAPT = "objective.instruction"


@dataclass(frozen=True, slots=True)
class ModelPick:
    """A model, and why it was chosen."""

    model: str
    reason: str


def pick_by_rule(objective: AnyObjective, named: Set[str]) -> ModelPick:
    """Choose between the bundled models by the objective alone, and by the keys that the user set."""
    if isinstance(objective, Classify):
        if objective.output == "words" or ADAPT in named:
            return ModelPick(DECODER, "label words and instructions need a decoder")
        why = "for labels the encoder is expected to do as well in a tenth of the time"
        return ModelPick(ENCODER, f"{why}; --model {DECODER} tunes the decoder instead")
    if objective.prefers_encoder:
        return ModelPick(ENCODER, objective.unsuited)
    if "encoder" in objective.families and objective.produces == "likelihood":
        return ModelPick(DECODER, f"generates text; --model {ENCODER} tunes an encoder for embeddings and masked words")
    return ModelPick(DECODER, objective.unsuited)
