"""The cost of a run from statistics of its rows alone: no torch, no loaded model, no measurement.

The same arithmetic as in `cost_model`, with the sizes of bundled models and the speed of a usual processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.config.resolve import default_validations
from tunesmith.objectives import objective_class


@dataclass(frozen=True, slots=True)
class RoughSize:
    """Sizes of a model, as `models.profile.measure_size` returns them."""

    family: str
    parameters: int
    matmul_parameters: int  # weights that each token is multiplied with
    layers: int
    hidden: int
    words: int  # vocabulary
    trained_bytes: float  # activations of one token, if weights are trained
    read_bytes: float  # the same in a forward pass


ROUGH_SIZES: Mapping[str, RoughSize] = {
    "minilm-l6": RoughSize("encoder", 22_713_216, 10_616_832, 6, 384, 30_522, 170_624, 104_552),
    "smollm2-135m": RoughSize("decoder", 134_515_008, 106_168_320, 30, 576, 49_152, 1_342_772, 879_660),
}
# Tokens that one English character has on average in both bundled models, and the tokens around a row.
TOKENS_PER_CHARACTER, FRAME = 0.25, 3
# A usual processor: operations and bytes per second.
PACE: Mapping[str, float] = {"products": 300e9, "products32": 150e9, "moved": 20e9}
# Tokens of the general text and of the questions on general ability.
GENERAL_TOKENS = 20_000
# Steps after which the overfit check has usually passed, and its rows.
CHECK_STEPS, CHECK_ROWS = 10, 8
# Prompts that are tried with the base model, and the rows on which they are tried.
PROMPTS = 3
PROMPT_ROWS: Mapping[str, int] = {"labels": 100, "text": 32}
MOVED_IN_TRAINING, MOVED_IN_READING = 8, 3
CALLS = 2e-3  # seconds per layer and pass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoughRun:
    """A run that is only known by statistics of its rows."""

    size: RoughSize  # a value of `ROUGH_SIZES`
    objective: str
    technique: str = "lora"
    train: int  # rows
    validation: int = 0
    test: int = 0
    characters: float  # mean of a row, prompt and answer
    answer_tokens: float = 0.0  # most tokens of a generated answer; 0 if labels are predicted
    epochs: float = 3.0
    batch_rows: int = 16

    @property
    def tokens(self) -> float:
        """Return the mean tokens of a row."""
        return self.characters * TOKENS_PER_CHARACTER + FRAME


def rough_seconds(run: RoughRun, pace: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each phase by formula; `pace` has what was measured of this machine, as `MachinePace`."""
    pace = {**PACE, **pace}
    size, decoder = run.size, run.size.family == "decoder"
    steps = max(1, round(run.epochs * -(-run.train // run.batch_rows)))
    per_row = run.tokens * _pass_seconds(size, pace, technique=run.technique) + CALLS * size.layers / run.batch_rows
    read = run.tokens * _read_seconds(size, pace)
    read32 = run.tokens * _read_seconds(size, pace, "products32")
    objective = objective_class(run.objective)
    labels, writes = objective.produces == "labels", objective.produces == "text" and objective.has_reference_answers
    scored = read if labels else read32  # labels are scored in the dtype of training
    training = steps * run.batch_rows * per_row
    # As in `make_plan`.
    validations = default_validations(steps * run.batch_rows, 0 if objective.samples_completions else run.validation)
    prompts = (
        min(run.validation or run.train, PROMPT_ROWS[objective.produces] if labels or writes else 0) * PROMPTS
        if decoder
        else 0
    )
    probe = 0 if decoder else run.train
    writing = run.answer_tokens * _step_seconds(size, pace) if writes else 0.0
    scoring = run.test * scored + writing * -(-run.test // 32)
    seconds = {
        "loading": 2.0 + 4 * size.parameters / 500e6,
        "baselines": 0.3 + 3e-6 * run.train * run.characters if labels or objective.produces == "number" else 0.0,
        "base scoring": prompts * scored + probe * read32 + writing * PROMPTS * (prompts > 0) + scoring,
        "general ability before": GENERAL_TOKENS * _read_seconds(size, pace) if decoder else 0.0,
        "reference log-probabilities": (run.train + run.validation) * read if run.objective == "preference" else 0.0,
        "overfit check": CHECK_STEPS * CHECK_ROWS * per_row,
        "training": training,
        "validation": validations * run.validation * read,
        "checkpoints": 1.0,
        "general ability after": GENERAL_TOKENS * _read_seconds(size, pace) if decoder else 0.0,
        "test scoring": scoring + run.validation * scored,
        "diagnostics": 0.2,
        "saving": 0.5,
        "report": 2.0,
    }
    return {name: value for name, value in seconds.items() if value > 0}


def _pass_seconds(size: RoughSize, pace: Mapping[str, float], *, technique: str) -> float:
    """Return the seconds of one token in training: forward and backward."""
    operations = (6 if technique == "full" else 4) * size.matmul_parameters
    return operations / pace["products"] + MOVED_IN_TRAINING * size.trained_bytes / pace["moved"]


def _read_seconds(size: RoughSize, pace: Mapping[str, float], products: str = "products") -> float:
    """Return the seconds of one token in a forward pass."""
    return 2 * size.matmul_parameters / pace[products] + MOVED_IN_READING * size.read_bytes / pace["moved"]


def _step_seconds(size: RoughSize, pace: Mapping[str, float]) -> float:
    """Return the seconds in which each row of a batch gets one token."""
    weights = size.matmul_parameters + size.words * size.hidden
    return 4 * weights / pace["moved"] + 16 * 2 * weights / pace["products32"] + size.layers * CALLS / 4
