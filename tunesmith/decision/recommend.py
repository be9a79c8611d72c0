"""Which technique to take: one table, read from the top; and how each is expected to come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Up to so many numbers a network is small: full tuning costs little more than anything else.
SMALL = 60_000_000
# Bits that a number of an update can hold, and bits to be learned in a token: beyond their balance LoRA falls behind
# ("LoRA Without Regret", Schulman et al., Thinking Machines 2025).
BITS_HELD, BITS_A_TOKEN = 2.0, 1.0


# From so many numbers on soft prompts score as full tuning does (Lester et al. 2021, arXiv 2104.08691, figure 1).
LARGE = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """What the choice hangs on."""

    family: str
    rows: int
    parameters: int
    learned_tokens: int  # of all training rows, each row once
    lora_numbers: int
    fits: frozenset[str]  # techniques that the machine's memory holds and the model can take


@dataclass(frozen=True, slots=True)
class Choice:
    """The technique to take, and why."""

    technique: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TechniqueRule:
    """A technique for the cases it is for."""

    technique: str
    holds: Callable[[Case], bool]
    why: str


MOST_HELD = "holds the most of what fits into memory, though more is to be learned than its numbers can hold"
SMALLER = "no form of LoRA fits into memory"


def _more_than_held(case: Case) -> bool:
    return case.learned_tokens * BITS_A_TOKEN > case.lora_numbers * BITS_HELD


# The first rule that holds and whose technique fits into memory decides.
RULES = (
    TechniqueRule(
        "full",
        lambda case: case.family == "encoder" and case.parameters <= SMALL,
        "a small encoder: all of it takes little longer to tune than a part of it, and the result needs no adapter",
    ),
    TechniqueRule(
        "full",
        _more_than_held,
        "more is to be learned than a low-rank update of this size can hold",
    ),
    TechniqueRule("lora", _more_than_held, MOST_HELD),
    TechniqueRule("qlora", _more_than_held, MOST_HELD),
    TechniqueRule(
        "lora",
        lambda case: True,
        "as good as full tuning on rows as many as these, in less memory, and a small file as the result",
    ),
    TechniqueRule(
        "qlora",
        lambda case: True,
        "LoRA over plain weights does not fit into memory; over 4 bits it does, and scores as well on large models",
    ),
    *(TechniqueRule(one, lambda case: True, SMALLER) for one in ("ia3", "prefix", "p-tuning", "prompt")),
)


def recommend(case: Case) -> Choice | None:
    """The technique for a case; None where nothing fits."""
    for rule in RULES:
        if rule.technique in case.fits and rule.holds(case):
            return Choice(rule.technique, (rule.why, *_beside(case, rule.technique)))
    return None


def _beside(case: Case, chosen: str) -> list[str]:
    """Why not the neighbours."""
    found = []
    if chosen == "lora":
        found.append("dora takes longer and gains nothing where both were measured alike")
        found.append(
            "soft prompts and (IA)^3 are published to stay behind on models of less than 10 billion numbers"
            if case.parameters < LARGE
            else "on models this large soft prompts are published to come level; nothing was measured here"
        )
    if chosen != "full" and "full" not in case.fits:
        found.append("full tuning does not fit into memory")
    if case.rows < 200:
        found.append(
            f"{case.rows} rows are few: the choice of technique matters less than more rows (`tunesmith need`)"
        )
    return found


@dataclass(frozen=True, slots=True)
class Standing:
    """How a technique is expected to score beside full tuning, by whose figures."""

    word: str  # level, behind, far behind
    published: str
    ours: str


GRID = "beside LoRA's 0.895 on 160 reviews, smollm2-135m, three seeds: docs/grid.md"
MORE = "beside LoRA's 0.908 on 600 reviews, smollm2-135m, three seeds: docs/grid-600.md"
GERMAN = "chrF beside LoRA's 37.7 on German: bench/RECOMMEND.md"
FILMS = "beside full's 0.784 on 600 sentences of films, minilm-l6: bench/RECOMMEND.md"
PROBED = "beside full's 0.814 on 160 reviews, three seeds: docs/grid.md"
NOBODY = "nothing for small encoders"
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
# What a small encoder's own runs say, where nobody has published a comparison.
ENCODERS: Mapping[str, Standing] = {
    "full": Standing("level", NOBODY, "no other surely better on two tasks, minilm-l6: bench/RECOMMEND.md"),
    "lora": Standing("level", NOBODY, f"0.775 {FILMS}; 0.797 {PROBED}"),
    "dora": Standing("level", NOBODY, f"0.775 {FILMS}; 0.798 {PROBED}"),
    "qlora": Standing("level", NOBODY, f"0.775 {FILMS}; 0.800 {PROBED}"),
    "ia3": Standing("behind", NOBODY, f"0.761 {FILMS}; 0.786 {PROBED}"),
    "prefix": Standing("behind", NOBODY, f"0.744 {FILMS}; 0.796 {PROBED}"),
    "prompt": Standing("behind", NOBODY, f"0.771 {FILMS}; 0.779 {PROBED}"),
    "p-tuning": Standing("behind", NOBODY, f"0.756 {FILMS}; 0.779 {PROBED}"),
}  # fmt: skip
