"""What a run takes, by formula: numbers that move, peak memory, seconds of training. Nothing is run here.

Arithmetic: each weight is multiplied forward, and backward once for what it read and once more where it learns itself
(2 operations each). The rest of a step is moving memory: what a pass keeps, and the optimizer's numbers. Timed steps
of one technique correct all of them by one factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.model.size import Kept, NetworkSize
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.adapter import reaches
from tunesmith.techniques.base import Technique
from tunesmith.techniques.ia3 import layers_of

# Bytes of a number that moves: itself, its gradient and AdamW's two means, all in float32; a step reads and writes
# them all, and the gradient's norm reads once more.
NUMBER, LEARNING, STEP_BYTES = 4, 12, 40
# Bytes per output that DoRA keeps beside LoRA: the product before it is scaled.
DORA_KEPT = 4
# Largest memory of a pass over what it keeps of tokens, and of pairs of them: gradients on the way back, and holes that
# passes of other lengths left behind them, where there were some.
PASS_OVER_KEPT, PAIRS_OVER_KEPT = 1.3, 1.8
# Times that what a pass keeps goes through memory, forward and backward together, or forward alone; and weights that
# are cast anew, unpacked (QLoRA) or normed (DoRA) in each pass.
KEPT_MOVED, READ_MOVED, CAST_MOVED, UNPACK_BYTES, NORM_BYTES = 8, 3, 3, 20, 60
# Seconds of a layer in a pass that no arithmetic explains: calls of small operations.
CALLS = 2e-3
# What PEFT and the libraries of reports and cheap ways add while a run goes on.
BESIDE = 200e6
# States of a layer that are there at once where nothing is kept: inner ones of the widest layers, and outer ones.
INNER, OUTER = 3, 2
# Operations for each query, key and number of a state's width: two products forward, four on the way back.
PAIR = 12
# Rows of logits that are there at once, and how many times over (tunesmith/model/head.py).
HEAD_ROWS, HEAD_COPIES = 256, 3
# Bytes of a weight in 4 bits with its scales, as bitsandbytes keeps them.
FOUR_BITS = 0.52

# Bounds as factors of what is expected, by judgement; twelve small runs stayed within them (bench/PLAN.md).
SURE = {"memory": (0.87, 1.15), "timed": (0.8, 1.3), "formula": (0.4, 2.5)}


@dataclass(frozen=True, slots=True)
class Written:
    """Prompts that are answered side by side when a model is scored."""

    rows: int
    prompt: int  # tokens of the longest
    fed: int  # of them those that each row brings: what all share runs once
    answer: int  # tokens of an answer as long as it may be


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """What training on some rows comes to, whichever technique moves the numbers."""

    steps: int
    passes: int  # micro-batches
    rows: int  # of all passes
    computed: int  # tokens through the network, what rows share counted once
    padded: int  # the same where rows run apart, each as long as the longest beside it
    learned: int  # positions whose states meet the whole vocabulary
    widest: int  # tokens of the largest pass, and the rows and padded tokens of that
    widest_rows: int
    widest_padded: int
    widest_first: bool = False  # no other pass comes before it
    widest_attended: int = 0
    attended: int = 0  # pairs of a query and a key; where there is no way back, three are one
    read: int = 0  # tokens that pass once more without a way back, and positions of them that meet the vocabulary
    told: int = 0
    head: int = 0  # numbers of heads of the objective's own, and how many are met by the states that go through one
    headed: int = 0
    cheap: float = 0.0  # bytes that the cheap ways take before training begins
    controls: int = 0  # tuned over bases of their own
    copies: int = 0  # of the start, which full tuning keeps where steps ask what it would say
    written: tuple[Written, ...] = ()  # what one model is asked to write when it is scored


@dataclass(frozen=True, slots=True)
class MachinePace:
    """What a machine was measured to do."""

    products: float  # operations per second in the type that training multiplies in
    products32: float  # the same in float32
    moved: float  # bytes per second
    mixed: bool  # training multiplies in two bytes a number
    factor: float = 1.0  # seconds measured over seconds by formula
    timed: bool = False


@dataclass(frozen=True, slots=True)
class FigureBounds:
    """A figure with the bounds that outcomes are expected between."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, expected: float, kind: str) -> FigureBounds:
        """The figure with the bounds of its kind."""
        low, high = SURE[kind]
        return cls(low * expected, expected, high * expected)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One technique's share of a plan: numbers that move, bytes, seconds of training."""

    trainable: int
    memory: FigureBounds
    seconds: FigureBounds


def estimate(
    technique: Technique, size: NetworkSize, work: TrainingWork, pace: MachinePace, *, held: float
) -> Estimate:
    """What a technique takes; `held` are the bytes that the process and its plain weights take before it."""
    seconds = pace.factor * step_seconds(technique, size, work, pace)
    return Estimate(
        trainable(technique, size, work),
        FigureBounds.around(peak_bytes(technique, size, work, pace, held=held), "memory"),
        FigureBounds.around(seconds, "timed" if pace.timed else "formula"),
    )


def trainable(technique: Technique, size: NetworkSize, work: TrainingWork) -> int:
    """Numbers that move, those of the objective's head among them."""
    return moving(technique, size) + work.head


def moving(technique: Technique, size: NetworkSize) -> int:
    """Numbers of the technique's own that move."""
    (count,) = (count for kind, count in COUNTS.items() if isinstance(technique, kind))
    return int(count(technique, size))


def _lora(technique: Lora, size: NetworkSize) -> int:
    """A and B beside each layer, and for DoRA a length for each output."""
    reached = _reached(technique, size)
    lengths = sum(outer for _, outer in reached) if technique.dora else 0
    return sum(technique.rank * (inner + outer) for inner, outer in reached) + lengths


def _reached(technique: Lora, size: NetworkSize) -> list[tuple[int, int]]:
    if technique.targets == "all-linear":
        return [(inner, outer) for _, inner, outer in size.linear]
    return _widths(size, technique.targets)


def _widths(size: NetworkSize, wanted: str | Sequence[str]) -> list[tuple[int, int]]:
    """Inner and outer widths of the layers that PEFT takes by these names or this pattern."""
    return [(inner, outer) for name, inner, outer in (*size.linear, *size.named) if reaches(name, wanted)]


def _ia3(technique: Ia3, size: NetworkSize) -> int:
    """A factor for each output, or for each input of a layer that is scaled where it reads."""
    named, reading = layers_of(technique, size.kind)
    answering = [name for name in named if name not in reading]
    return sum(i for i, _ in _widths(size, reading)) + sum(o for _, o in _widths(size, answering))


def _ptuning(technique: PTuning, size: NetworkSize) -> int:
    """The embeddings, and the small network that they go through."""
    hidden, width = size.embedded, technique.width or size.embedded
    if technique.encoder == "mlp":
        return technique.tokens * hidden + 2 * hidden * width + width * width + 2 * width + hidden
    # Two layers, each both ways with four gates; then an MLP from twice the width.
    gates = sum(2 * 4 * width * (read + width + 2) for read in (hidden, 2 * width))
    return technique.tokens * hidden + gates + 4 * width * width + 2 * width + 2 * width * hidden + hidden


COUNTS: Mapping[type[Any], Callable[[Any, NetworkSize], int]] = {
    Full: lambda _, size: size.parameters,
    Lora: _lora,
    Ia3: _ia3,
    Prompt: lambda technique, size: technique.tokens * size.embedded,
    Prefix: lambda technique, size: technique.tokens * size.past,
    PTuning: _ptuning,
}


def peak_bytes(technique: Technique, size: NetworkSize, work: TrainingWork, pace: MachinePace, *, held: float) -> float:
    """The largest memory of the run: what stays and the largest pass over it, or what scoring takes if that is more.

    `held` are the bytes that the process takes with plain weights.
    """
    count = trainable(technique, size, work)
    packed = (NUMBER - FOUR_BITS) * size.matrices if _in_four_bits(technique) else 0.0
    before = held - packed
    held = before + work.controls * (NUMBER * size.parameters - packed)
    stays = held + BESIDE + LEARNING * count + (0 if isinstance(technique, Full) else NUMBER * count)
    if isinstance(technique, Full):
        stays += NUMBER * size.parameters * work.copies
    kept = _kept(technique, size, pace)
    tokens = _tokens(technique, size, (work.widest, work.widest_padded), (1, work.widest_rows))
    logits = HEAD_COPIES * NUMBER * HEAD_ROWS * size.words if work.learned else 0
    # Keys and values that rows share or that are padded are copied for each row (tunesmith/model/attention.py); an
    # encoder's queries too, and all of them in float32.
    width = (2 if pace.mixed else NUMBER) if size.causal else 1.5 * NUMBER
    passing = kept.token * tokens + width * size.past * max(0, work.widest_padded - work.widest)
    pairs = PAIRS_OVER_KEPT * kept.pair * work.widest_attended
    training = stays + kept.once + (1.0 if work.widest_first else PASS_OVER_KEPT) * passing + pairs + logits
    return max(training, before + work.cheap, *(held + written_bytes(one, size) for one in work.written))


def written_bytes(group: Written, size: NetworkSize) -> float:
    """What answering needs: keys and values of all rows, which grow with the answers, or one layer's states before."""
    remembered = NUMBER * size.past
    states = NUMBER * (INNER * max(max(inner, outer) for _, inner, outer in size.linear) + OUTER * size.hidden)
    # A layer's are there twice while a token is added to them.
    grown = (group.prompt + group.answer) * remembered * (1 + 1 / size.layers)
    return group.rows * (max(group.prompt * remembered + group.fed * states, grown) + NUMBER * size.words)


def _kept(technique: Technique, size: NetworkSize, pace: MachinePace) -> Kept:
    """What a pass keeps for the way back."""
    if isinstance(technique, Full):
        return size.moving
    if isinstance(technique, Ia3):
        return replace(size.frozen, token=size.frozen.token + NUMBER * moving(technique, size))
    if isinstance(technique, Prompt | PTuning) and size.causal:  # the network is cast for the virtual tokens once more
        return replace(size.frozen, once=2 * size.frozen.once)
    if not isinstance(technique, Lora):
        return size.frozen
    reached = _reached(technique, size)
    beside = (2 if pace.mixed else NUMBER) * technique.rank * len(reached)
    beside += DORA_KEPT * sum(outer for _, outer in reached) if technique.dora else 0
    # Weights in 4 bits are unpacked layer by layer, and no copy in two bytes is kept of them.
    cast = 2 * size.matrices if pace.mixed and technique.quantize else 0
    return replace(size.moving, token=size.moving.token + beside, once=max(0.0, size.moving.once - cast))


def _in_four_bits(technique: Technique) -> bool:
    return isinstance(technique, Lora) and bool(technique.quantize)


def _tokens(technique: Technique, size: NetworkSize, counted: tuple[int, int], over: tuple[int, int]) -> int:
    """Tokens of passes, `counted` as (packed, padded), with the virtual ones that run in each of `over` passes or rows.

    A decoder runs virtual tokens once a pass. An encoder's read the row too, so they run in every row, which is padded.
    A prefix is no tokens that run, but keys that are there.
    """
    packed, padded = counted
    passes, rows = over
    if isinstance(technique, Prompt | PTuning):
        virtual = technique.virtual_tokens()
        return packed + passes * virtual if size.causal else padded + rows * virtual
    return packed


def step_seconds(technique: Technique, size: NetworkSize, work: TrainingWork, pace: MachinePace) -> float:
    """Seconds of all training steps by formula, before any correction."""
    tokens = _tokens(technique, size, (work.computed, work.padded), (work.passes, work.rows))
    whole, kept = isinstance(technique, Full), _kept(technique, size, pace)
    operations = tokens * (4 + 2 * whole) * size.multiplied + work.attended * PAIR * size.hidden * size.layers
    operations += work.read * 2 * size.multiplied
    moved = (tokens * KEPT_MOVED + work.read * READ_MOVED) * kept.token + work.attended * KEPT_MOVED * kept.pair
    moved += work.steps * STEP_BYTES * trainable(technique, size, work)
    if isinstance(technique, Lora):
        operations += 6 * tokens * moving(technique, size)
        moved += work.passes * size.matrices * (UNPACK_BYTES * bool(technique.quantize) + NORM_BYTES * technique.dora)
    else:  # a fused low-rank update keeps the weights it has cast, all others cast them in each pass
        moved += work.passes * kept.once * CAST_MOVED
    words = (work.learned * (4 + 2 * whole) + 2 * work.told) * size.words * size.hidden + 6 * work.headed
    calls = work.passes * size.layers * CALLS
    return operations / pace.products + words / pace.products32 + moved / pace.moved + calls


def reading_seconds(tokens: float, size: NetworkSize, pace: MachinePace) -> float:
    """Seconds of tokens that pass through the network without a way back."""
    return pace.factor * tokens * (2 * size.multiplied / pace.products32 + size.frozen.token * READ_MOVED / pace.moved)


def writing_seconds(steps: float, rows: float, size: NetworkSize, pace: MachinePace) -> float:
    """Seconds of so many steps in each of which so many rows get their next token."""
    weights = NUMBER * (size.multiplied + size.words * size.hidden)
    each = weights / pace.moved + rows * 2 * (size.multiplied + size.words * size.hidden) / pace.products32
    return pace.factor * steps * (each + size.layers * CALLS / 4)
