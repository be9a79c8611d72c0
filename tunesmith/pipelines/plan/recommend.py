"""Recommendation of a technique by an ordered list of rules, and published and measured results of each technique."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Parameters of a small network, for which full tuning costs little more than any other technique.
SMALL = 60_000_000
# Capacity of an adapter parameter and information of a learned token, in bits. If the data exceed the capacity, LoRA
# scores lower than full tuning ("LoRA Without Regret", Schulman et al., Thinking Machines 2025).
BITS_HELD = 2.0
BITS_A_TOKEN = 1.0
# Parameters from which soft prompts score as high as full tuning (Lester et al. 2021, arXiv 2104.08691, figure 1).
LARGE = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """The facts that determine the choice."""

    family: str  # decoder or encoder
    rows: int  # training rows
    parameters: int  # of the base model
    learned_tokens: int  # of all training rows, each row once
    lora_numbers: int  # trainable parameters of LoRA
    fits: frozenset[str]  # techniques that fit into memory and that the model supports


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended technique and the reasons."""

    technique: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TechniqueRule:
    """A technique and the condition under which it is recommended."""

    technique: str
    holds: Callable[[Case], bool]
    why: str


MOST_HELD = "has the largest capacity of all that fits into memory, but less than the training tokens require"
SMALLER = "no form of LoRA fits into memory"


def _more_than_held(case: Case) -> bool:
    return case.learned_tokens * BITS_A_TOKEN > case.lora_numbers * BITS_HELD


# The first rule that applies and whose technique fits into memory decides.
RULES = (
    TechniqueRule(
        "full",
        lambda case: case.family == "encoder" and case.parameters <= SMALL,
        "a small encoder: full tuning takes little longer than an adapter, and the result is a plain model",
    ),
    TechniqueRule("full", _more_than_held, "the training tokens exceed the capacity of a low-rank update of this size"),
    TechniqueRule("lora", _more_than_held, MOST_HELD),
    TechniqueRule("qlora", _more_than_held, MOST_HELD),
    TechniqueRule(
        "lora",
        lambda case: True,
        "as good as full tuning for this number of rows, in less memory and with a small result file",
    ),
    TechniqueRule(
        "qlora",
        lambda case: True,
        "LoRA over unquantized weights does not fit into memory; over 4-bit weights it does, at equal scores on large "
        "models",
    ),
    *(TechniqueRule(name, lambda case: True, SMALLER) for name in ("ia3", "prefix", "p-tuning", "prompt")),
)


def recommend(case: Case) -> Choice | None:
    """Recommend a technique.

    Returns:
        The choice, or None if no technique fits into memory.
    """
    for rule in RULES:
        if rule.technique in case.fits and rule.holds(case):
            return Choice(rule.technique, (rule.why, *_alternatives(case, rule.technique)))
    return None


def _alternatives(case: Case, chosen: str) -> list[str]:
    """Return the reasons against similar techniques."""
    reasons = []
    if chosen == "lora":
        reasons.append("dora takes longer and did not score higher in any measurement of both")
        reasons.append(
            "soft prompts and (IA)^3 score lower in publications on models of less than 10 billion parameters"
            if case.parameters < LARGE
            else "soft prompts score as high in publications on models of this size; not measured here"
        )
    if chosen != "full" and "full" not in case.fits:
        reasons.append("full tuning does not fit into memory")
    if case.rows < 200:
        reasons.append(
            f"only {case.rows} rows: more rows matter more than the choice of technique (`tunesmith learning-curve`)"
        )
    return reasons


@dataclass(frozen=True, slots=True)
class Standing:
    """The expected score of a technique compared with full tuning, and the evidence."""

    word: str  # level, behind, far behind
    published: str
    ours: str  # measured in this project


GRID = "against LoRA's 0.895 on 160 reviews, smollm2-135m, three seeds: docs/reference/grid.md"
MORE = "against LoRA's 0.908 on 600 reviews, smollm2-135m, three seeds: docs/reference/grid-600.md"
GERMAN = "chrF against LoRA's 37.7 on German: bench/RECOMMEND.md"
FILMS = "against full's 0.784 on 600 sentences from film reviews, minilm-l6: bench/RECOMMEND.md"
PROBED = "against full's 0.814 on 160 reviews, three seeds: docs/reference/grid.md"
UNPUBLISHED = "no publication on small encoders"
PEFT = "PEFT's MetaMathQA comparison, Llama-3.2-3B, GSM8K %"
STANDINGS: Mapping[str, Standing] = {
    "full": Standing("level", f"47.2 ({PEFT})", f"0.895 {GRID}"),
    "lora": Standing(
        "level", f"47.8 to 51.3 ({PEFT}); GLUE 87.2 against full's 86.4 (Hu et al. 2021)",
        "reviews 71.4 to 90.0, synopsis 0.232 to 0.357, smollm2-135m: docs/reports",
    ),
    "dora": Standing("level", f"46.9 in 1.26 times LoRA's time ({PEFT})", f"0.901 {GRID}"),
    "qlora": Standing(
        "level", "MMLU 53.1 against 53.0 in 16 bits (Dettmers et al. 2023)", f"0.901 {MORE}; 37.6 {GERMAN}",
    ),
    "ia3": Standing("behind", f"31.1 to 45.5, by rate ({PEFT})", f"0.897 {GRID}; 28.4 {GERMAN}"),
    "prefix": Standing("behind", f"41.6 from real text, 18.6 from random numbers ({PEFT})", f"0.873 {GRID}"),
    "prompt": Standing("far behind", f"34.3 from words, 5.7 from random numbers ({PEFT})", f"0.854 {GRID}"),
    "p-tuning": Standing("far behind", f"35.0 ({PEFT})", f"0.786 {GRID}"),
}  # fmt: skip
# Measured with a small encoder; there is no published comparison.
ENCODERS: Mapping[str, Standing] = {
    "full": Standing("level", UNPUBLISHED, "no other significantly better on two tasks, minilm-l6: bench/RECOMMEND.md"),
    "lora": Standing("level", UNPUBLISHED, f"0.775 {FILMS}; 0.797 {PROBED}"),
    "dora": Standing("level", UNPUBLISHED, f"0.775 {FILMS}; 0.798 {PROBED}"),
    "qlora": Standing("level", UNPUBLISHED, f"0.775 {FILMS}; 0.800 {PROBED}"),
    "ia3": Standing("behind", UNPUBLISHED, f"0.761 {FILMS}; 0.786 {PROBED}"),
    "prefix": Standing("behind", UNPUBLISHED, f"0.744 {FILMS}; 0.796 {PROBED}"),
    "prompt": Standing("behind", UNPUBLISHED, f"0.771 {FILMS}; 0.779 {PROBED}"),
    "p-tuning": Standing("behind", UNPUBLISHED, f"0.756 {FILMS}; 0.779 {PROBED}"),
}  # fmt: skip
