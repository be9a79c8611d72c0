"""Analytic cost model of a run: trainable parameters, peak memory and training time. Nothing is executed here.

Each weight takes 2 operations per token in the forward pass, 2 for the gradient of its input, and 2 more if it is
trained. The rest of a step is memory traffic: stored activations and the optimizer state. `forecast`
corrects the seconds by earlier runs and timed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.models.profile import ActivationMemory, NetworkSize
from tunesmith.pipelines.plan.report import Bounds
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique
from tunesmith.techniques.ia3 import layers_of
from tunesmith.techniques.peft_base import reaches

NUMBER = 4  # bytes of a float32 value
MOMENTS = 8  # bytes per trainable parameter of the two moments of AdamW, in float32
MOMENTS_8BIT = 2 * (1 + 4 / 256)  # the same with `adamw-8bit`: a byte each, and a float32 scale for every 256
STEP_BYTES = 24  # read and written per trainable parameter and step, including the gradient norm, without the moments
# Bytes per output that DoRA stores in addition to LoRA: the product before it is scaled.
DORA_KEPT = 4
# Peak memory of a pass relative to its stored activations, for tokens and for pairs of tokens. It includes gradients
# in the backward pass and fragmentation by earlier passes of other lengths.
PASS_OVER_KEPT = 1.3
PAIRS_OVER_KEPT = 1.8
# How often stored activations pass through memory: forward and backward, or forward only.
KEPT_MOVED = 8
READ_MOVED = 3
CAST_MOVED = 3  # the same for weights that each pass casts again
UNPACK_BYTES = 20  # memory traffic per weight that QLoRA unpacks in each pass
NORM_BYTES = 60  # memory traffic per weight whose norm DoRA computes in each pass
# Seconds per layer and pass that the arithmetic does not explain: launches of small operations.
CALLS = 2e-3
# Bytes that PEFT and the libraries for reports and baselines add during a run.
LIBRARIES = 200e6
# Layer states that exist at once in inference: inner ones of the widest layers, and outer ones.
INNER = 3
OUTER = 2
# Operations per query, key and element of the state: two products forward, four backward.
PAIR = 12
# Rows of logits that exist at once, and the number of copies (tunesmith/models/lm_head.py).
HEAD_ROWS = 256
HEAD_COPIES = 3
# Bytes of a 4-bit weight with its scales, in the format of bitsandbytes.
FOUR_BITS = 0.52
HALF = 2  # bytes of a bfloat16 value
GLOO = 2.3e9  # bytes per second between processes of a CPU: the best of 8 all-reduces of 64 MB between two
# Layers that exist whole while sharded weights are computed with: the one at work and the one that is fetched next.
WHOLE_LAYERS = 2

# Bounds of memory as factors of the expected value, by judgement; twelve small runs were within them (bench/PLAN.md).
MEMORY_BOUNDS = (0.87, 1.15)


@dataclass(frozen=True, slots=True)
class Written:
    """A batch of prompts that is answered when a model is evaluated."""

    rows: int
    prompt: int  # tokens of the longest prompt
    fed: int  # tokens of it that are not shared by all rows; a shared prefix runs once
    answer: int  # greatest length of an answer, in tokens


@dataclass(frozen=True, slots=True)
class TrainingWork:
    """The workload of training on some rows, independent of the technique."""

    steps: int
    passes: int  # micro-batches
    rows: int  # of all passes
    computed: int  # tokens through the network; shared prefixes counted once
    padded: int  # the same without packing: each row as long as the longest of its pass
    learned: int  # positions whose logits are computed
    widest: int  # tokens of the largest pass
    widest_rows: int  # rows of that pass
    widest_padded: int  # padded tokens of that pass
    widest_first: bool = False  # no other pass precedes it
    widest_attended: int = 0  # query-key pairs of that pass
    attended: int = 0  # query-key pairs of all passes; without a backward pass, three count as one
    read: int = 0  # tokens of additional forward passes, such as those of a reference model
    read_learned: int = 0  # positions of these whose logits are computed
    head: int = 0  # parameters of the objective's own heads
    headed: int = 0  # products of these heads: parameters times states
    baseline_bytes: float = 0.0  # bytes used by the baselines before training
    controls: int = 0  # control runs with their own base model
    copies: int = 0  # copies of the base model that full tuning needs as a reference in each step
    written: tuple[Written, ...] = ()  # generation during evaluation of one model


@dataclass(frozen=True, slots=True)
class MachinePace:
    """Measured speed of a machine."""

    products: float  # operations per second in the dtype of training
    products32: float  # the same in float32
    moved: float  # bytes per second
    mixed: bool  # training multiplies in a 2-byte dtype
    calls: float = CALLS  # seconds per layer and pass that small operations take to launch
    link: float = GLOO  # bytes per second to another process of the machine, in one direction
    net: float = GLOO  # bytes per second to a process of another machine, in one direction


@dataclass(frozen=True, slots=True)
class Placement:
    """The placement of a run on its processes, and what is kept of a pass."""

    processes: int = 1  # that share the rows of a step
    local: int = 1  # of them on each machine
    shards: int = 1  # processes among which the weights are divided, with their gradients and optimizer state
    frozen: float = NUMBER  # bytes of a frozen weight that is not quantized
    moments: float = MOMENTS  # bytes of optimizer state per trainable parameter
    recompute: bool = False  # only the input of each layer is kept for the backward pass


SINGLE = Placement()


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated cost of one technique, for each of the processes."""

    trainable: int  # parameters
    memory: Bounds  # bytes
    seconds: float  # of training


def estimate(
    technique: Technique,
    size: NetworkSize,
    work: TrainingWork,
    pace: MachinePace,
    *,
    held: float,
    placement: Placement = SINGLE,
) -> Estimate:
    """Estimate the cost of training with a technique.

    Args:
        technique: the technique.
        size: sizes of the base model.
        work: workload of the training rows of one process.
        pace: speed of its device.
        held: bytes of a process with all weights, unquantized, before training.
        placement: how the run is divided, and what is kept of a pass.
    """
    needed = peak_bytes(technique, size, work, pace, held=held, placement=placement)
    seconds = step_seconds(technique, size, work, pace, placement=placement)
    return Estimate(trainable(technique, size, work), Bounds.around(needed, *MEMORY_BOUNDS), seconds)


def trainable(technique: Technique, size: NetworkSize, work: TrainingWork) -> int:
    """Return the number of trainable parameters, including the heads of the objective."""
    return moving(technique, size) + work.head


def moving(technique: Technique, size: NetworkSize) -> int:
    """Return the number of trainable parameters of a technique, without the heads of the objective."""
    count = next((count for kind, count in COUNTS.items() if isinstance(technique, kind)), None)
    # A technique without a formula that does not count them is planned with all parameters: an upper bound.
    return (size.trained or size.parameters) if count is None else int(count(technique, size))


def _lora(technique: Lora, size: NetworkSize) -> int:
    """Count A and B of each layer, and for DoRA a magnitude per output."""
    layers = _lora_widths(technique, size)
    magnitudes = sum(outer for _, outer in layers) if technique.dora else 0
    return sum(technique.rank * (inner + outer) for inner, outer in layers) + magnitudes


def _lora_widths(technique: Lora, size: NetworkSize) -> list[tuple[int, int]]:
    if technique.targets == "all-linear":
        return [(inner, outer) for _, inner, outer in size.linear]
    return _widths(size, technique.targets)


def _widths(size: NetworkSize, targets: str | Sequence[str]) -> list[tuple[int, int]]:
    """Return input and output widths of the layers that PEFT selects by these names or this pattern."""
    return [(inner, outer) for name, inner, outer in (*size.linear, *size.named) if reaches(name, targets)]


def _ia3(technique: Ia3, size: NetworkSize) -> int:
    """Count a factor per output, or per input of the feed-forward layers that are scaled at their input."""
    names, feedforward = layers_of(technique, size.kind)
    others = [name for name in names if name not in feedforward]
    return sum(i for i, _ in _widths(size, feedforward)) + sum(o for _, o in _widths(size, others))


def _ptuning(technique: PTuning, size: NetworkSize) -> int:
    """Count the embeddings and the prompt encoder."""
    hidden = size.embedded
    width = technique.width or size.embedded
    if technique.encoder == "mlp":
        return technique.tokens * hidden + 2 * hidden * width + width * width + 2 * width + hidden
    # Two bidirectional LSTM layers with four gates, then an MLP from twice the width.
    gates = sum(2 * 4 * width * (inputs + width + 2) for inputs in (hidden, 2 * width))
    return technique.tokens * hidden + gates + 4 * width * width + 2 * width + 2 * width * hidden + hidden


COUNTS: Mapping[type[Any], Callable[[Any, NetworkSize], int]] = {
    Full: lambda _, size: size.parameters,
    Lora: _lora,
    Ia3: _ia3,
    Prompt: lambda technique, size: technique.tokens * size.embedded,
    Prefix: lambda technique, size: technique.tokens * size.past,
    PTuning: _ptuning,
}


def peak_bytes(
    technique: Technique,
    size: NetworkSize,
    work: TrainingWork,
    pace: MachinePace,
    *,
    held: float,
    placement: Placement = SINGLE,
) -> float:
    """Estimate the peak memory of a process: in training, or in evaluation or the baselines if that is more; bytes.

    The arguments are those of `estimate`.
    """
    count, full = trainable(technique, size, work), isinstance(technique, Full)
    held -= (NUMBER if full else placement.frozen) * size.parameters * (1 - 1 / placement.shards)
    quantized = isinstance(technique, Lora) and bool(technique.quantize)
    saved = (placement.frozen - FOUR_BITS) * size.matrices if quantized else 0.0
    before = held - saved
    held = before + work.controls * (NUMBER * size.parameters - saved)
    fixed = held + LIBRARIES + whole_bytes(technique, size, placement)
    learning = NUMBER + placement.moments  # of a trainable parameter: its gradient and the optimizer state
    if full:
        fixed += (learning * count + NUMBER * size.parameters * work.copies) / placement.shards
    else:
        fixed += (learning + NUMBER) * count  # what is added to a network is not divided
    activations = _activations(technique, size, pace)
    if placement.recompute:  # the insides of one layer exist at a time
        inputs = HALF * size.hidden * size.layers
        inside = activations.token / size.layers
        activations = replace(activations, token=inputs + inside, pair=activations.pair / size.layers)
    tokens = _tokens(technique, size, (work.widest, work.widest_padded), (1, work.widest_rows))
    stored = activations.stored(tokens, work.widest_rows)
    logits = HEAD_COPIES * NUMBER * HEAD_ROWS * size.words if work.learned else 0
    # Shared and padded keys and values are copied for each row (models/attention/packed.py); in an encoder the
    # queries too, and all of them in float32.
    width = (2 if pace.mixed else NUMBER) if size.causal else 1.5 * NUMBER
    passing = activations.token * stored + width * size.past * max(0, work.widest_padded - work.widest)
    pairs = PAIRS_OVER_KEPT * activations.pair * work.widest_attended
    passing *= 1.0 if work.widest_first else PASS_OVER_KEPT
    # Gradients that every process has whole are copied into one tensor to be added up.
    flat = NUMBER * count if placement.processes > 1 and not (full and placement.shards > 1) else 0.0
    training = fixed + max(activations.once + passing + pairs + logits, flat)
    return max(training, before + work.baseline_bytes, *(held + written_bytes(group, size) for group in work.written))


def whole_bytes(technique: Technique, size: NetworkSize, placement: Placement) -> float:
    """Return the bytes of sharded weights that are whole while a pass uses them, in bfloat16, with their gradients.

    Embeddings and the output layer stay whole from the beginning of a pass to its end.
    """
    if placement.shards == 1:
        return 0.0
    whole = WHOLE_LAYERS * size.matrices / size.layers + size.parameters - size.matrices
    return HALF * whole * (2 if isinstance(technique, Full) else 1)


def written_bytes(group: Written, size: NetworkSize) -> float:
    """Estimate the bytes of generation: the growing KV cache of all rows, or the states of one layer in the prefill."""
    cache = NUMBER * size.past
    states = NUMBER * (INNER * max(max(inner, outer) for _, inner, outer in size.linear) + OUTER * size.hidden)
    # The cache of a layer exists twice while a token is appended to it.
    grown = (group.prompt + group.answer) * cache * (1 + 1 / size.layers)
    growing = max(group.prompt * cache + group.fed * states, grown)
    return group.rows * (growing + NUMBER * (size.state + size.words))


def _activations(technique: Technique, size: NetworkSize, pace: MachinePace) -> ActivationMemory:
    """Return the bytes that a pass stores for the backward pass."""
    if isinstance(technique, Full):
        return size.moving
    if isinstance(technique, Ia3):
        return replace(size.frozen, token=size.frozen.token + NUMBER * moving(technique, size))
    if isinstance(technique, Prompt | PTuning) and size.causal:  # the virtual tokens need another cast of the network
        return replace(size.frozen, once=2 * size.frozen.once)
    if not isinstance(technique, Lora):
        return size.frozen
    layers = _lora_widths(technique, size)
    extra = (2 if pace.mixed else NUMBER) * technique.rank * len(layers)
    extra += DORA_KEPT * sum(outer for _, outer in layers) if technique.dora else 0
    # 4-bit weights are dequantized layer by layer; no 2-byte copy of them is stored.
    cast = 2 * size.matrices if pace.mixed and technique.quantize else 0
    return replace(size.moving, token=size.moving.token + extra, once=max(0.0, size.moving.once - cast))


def _tokens(technique: Technique, size: NetworkSize, tokens: tuple[int, int], batches: tuple[int, int]) -> int:
    """Return the tokens of `batches` (passes, rows), given `tokens` (packed, padded), with virtual tokens.

    In a decoder that caches keys and values only, virtual tokens run once per pass. Elsewhere they run in every padded
    row: in an encoder they attend to the row. A prefix consists of keys and values, which need no forward pass.
    """
    packed, padded = tokens
    passes, rows = batches
    if isinstance(technique, Prompt | PTuning):
        virtual = technique.virtual_tokens()
        return packed + passes * virtual if size.causal and not size.state else padded + rows * virtual
    return packed


def step_seconds(
    technique: Technique, size: NetworkSize, work: TrainingWork, pace: MachinePace, *, placement: Placement = SINGLE
) -> float:
    """Compute the seconds of all training steps; with recompute, layers run forward again in the backward pass."""
    tokens = _tokens(technique, size, (work.computed, work.padded), (work.passes, work.rows))
    full, count, again = isinstance(technique, Full), trainable(technique, size, work), placement.recompute
    activations = _activations(technique, size, pace)
    pairs = work.attended * PAIR + again * (work.attended * PAIR // 3)
    read = work.read + again * tokens
    operations = (tokens * (4 + 2 * full) + read * 2) * size.matmul_parameters + pairs * size.hidden * size.layers
    moved = (activations.stored(tokens, work.rows) * KEPT_MOVED + read * READ_MOVED) * activations.token
    moved += work.attended * KEPT_MOVED * activations.pair
    shards, processes = placement.shards, placement.processes
    own, copies = (count / shards, processes // shards) if full else (count, processes)
    moved += work.steps * (STEP_BYTES + 2 * placement.moments) * own
    if isinstance(technique, Lora):
        operations += 6 * tokens * moving(technique, size)
        moved += work.passes * size.matrices * (UNPACK_BYTES * bool(technique.quantize) + NORM_BYTES * technique.dora)
    else:  # the fused LoRA kernel reuses cast weights, all other techniques cast them in each pass
        moved += work.passes * activations.once * CAST_MOVED
    head = (work.learned * (4 + 2 * full) + 2 * work.read_learned) * size.words * size.hidden + 6 * work.headed
    calls = work.passes * size.layers * pace.calls
    computing = operations / pace.products + head / pace.products32 + moved / pace.moved + calls
    # Shards arrive while others are computed with: weights for forward and backward in bfloat16, gradients in float32.
    gathered = work.passes * (2 * HALF + NUMBER * full) * size.parameters * _ring(shards, shards, pace, placement)
    summed = work.steps * 2 * NUMBER * own * _ring(copies, processes, pace, placement)
    return max(computing, gathered) + summed


def _ring(among: int, spread: int, pace: MachinePace, placement: Placement) -> float:
    """Return the seconds per byte of an exchange among N processes: a ring moves (N - 1) / N of it through each.

    It is as fast as the links of a machine if all `spread` processes that take part in such rings are on one.
    """
    return (among - 1) / among / (pace.link if spread <= placement.local else pace.net)


def reading_seconds(tokens: float, size: NetworkSize, pace: MachinePace, *, tokens32: float = 0.0) -> float:
    """Estimate the seconds of forward passes without a backward pass: in the dtype of training, and in float32."""
    computing = 2 * size.matmul_parameters * (tokens / pace.products + tokens32 / pace.products32)
    return computing + (tokens + tokens32) * size.frozen.token * READ_MOVED / pace.moved


def writing_seconds(steps: float, rows: float, size: NetworkSize, pace: MachinePace) -> float:
    """Estimate the seconds of generation in decoding steps that add a token to each of some rows."""
    parameters = size.matmul_parameters + size.words * size.hidden
    step = NUMBER * parameters / pace.moved + rows * 2 * parameters / pace.products32
    return steps * (step + size.layers * CALLS / 4)
