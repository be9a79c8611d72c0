"""The sections of a recipe as pydantic models; documentation and error messages are generated from them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo

from tunesmith import objectives, techniques
from tunesmith.config.aliases import OLD_ARMS, VALUES, unknown_kind
from tunesmith.data.files import report_once
from tunesmith.display import under_home
from tunesmith.errors import suggestion
from tunesmith.objectives import OBJECTIVES, Multitask
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.plugins import offered, plugin, taken
from tunesmith.techniques import SHORTHANDS, TECHNIQUES, Lora

# Values that are not file names: votes of a loop as reward, human raters as judge, text sampled from the base model.
VOTES, PEOPLE, SELF = "votes", "page", "self"
ModelName = Annotated[str, AfterValidator(under_home)]


class _Section(BaseModel):
    """A section of the recipe: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(TaskRows):
    """Source, splits and length limit of the rows."""

    max_tokens: int = Field(
        512, ge=16, description="tokens of the longest row; longer prompts are shortened and counted"
    )
    audit: Literal["stop", "note"] = Field(
        "stop", description="severe data errors: stop the run, or log them and continue"
    )


class Schedule(_Section):
    """Optimization: length of training, learning rate, batches, checkpoints and validation."""

    epochs: float = Field(1, gt=0, le=10_000, description="passes over the training rows")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="peak value; auto: chosen by technique, family, width and objective"
    )
    batch_rows: int = Field(16, ge=1, description="rows per optimizer step")
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens per forward pass; auto: 4096, on a GPU as many as fill its memory"
    )
    recompute: bool | Literal["auto"] = Field(
        "auto",
        description="compute activations inside of layers again in the backward pass: less memory, a third to a half "
        "more time, the same result; auto: once memory has run out",
    )
    warmup: float = Field(
        0.06,
        ge=0,
        lt=1,
        description="fraction of the steps with rising learning rate, followed by cosine decay to a tenth",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="adamw-8bit: its two values per trained parameter in one byte each, by bitsandbytes"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    clip: float = Field(1.0, gt=0, description="maximum gradient norm")
    save_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="steps between checkpoints; auto: ten per run, 0: only at the end"
    )
    eval_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="steps between validations; auto: 3 to 7 per run, 0: none, and no early stopping"
    )
    patience: int = Field(3, ge=1, description="validations without improvement before stopping")
    probe: bool = Field(True, description="run an overfit check on 8 rows before training")


class Machine(_Section):
    """Device, precision and threads; auto chooses by a measurement."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(0, ge=0, le=1024, description="0: one per core")
    products: Literal["auto", "default", "onednn"] = Field(
        "auto", description="library of float32 products on a CPU; auto: oneDNN where it is faster and as exact"
    )
    exact: bool = Field(False, description="on a GPU: only deterministic kernels, so that repeated runs are equal")
    shard: Literal["auto", "none", "full"] = Field(
        "auto", description="divide the weights among the processes of the run; auto: where one GPU cannot hold them"
    )


def _by_kind(group: str, parts: Sequence[type[BaseModel]], shorthands: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a validator that turns `lora`, `DoRA`, PEFT's `PREFIX_TUNING` or {kind: lora} to a mapping.

    A kind that is not one of ours is looked up in the `group` of the plugins.
    """
    base = objectives.Objective if group == "objectives" else techniques.Technique
    kinds = {get_args(part.model_fields["kind"].annotation)[0] for part in parts}
    known = sorted(kinds | set(shorthands))
    theirs = {word.lower(): ours for word, ours in VALUES["technique.kind"].items() if ours in kinds}
    words = {word.replace("_", "-"): ours for word, ours in (theirs | {word: word for word in known}).items()}

    def read(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value if isinstance(value, base) and type(value) not in parts else validate(value)
        value = dict(value)
        kind = str(value.get("kind", ""))
        kind = words.get(kind.strip().lower().replace("_", "-"), kind)
        short = shorthands.get(kind, {})
        value = {**short, **value, "kind": short.get("kind", kind)}
        if value.get("kind") in kinds:
            if problem := taken(group, value["kind"]):
                report_once(problem)
            return validate(value)
        if (found := plugin(group, kind, base)) is None:
            raise ValueError(unknown_kind(kind, sorted({*known, *offered(group)})))
        return found.model_validate(value)

    return WrapValidator(read)


_Objective = Annotated[objectives.AnyObjective, Discriminator("kind")]
AnyObjective = Annotated[SerializeAsAny[_Objective], _by_kind("objectives", OBJECTIVES, {})]
_Technique = Annotated[techniques.AnyTechnique, Discriminator("kind")]
AnyTechnique = Annotated[SerializeAsAny[_Technique], _by_kind("techniques", TECHNIQUES, SHORTHANDS)]


class Gates(_Section):
    """Quality gates: limits on the result; a violated one makes `tune` exit with 1."""

    max_general_nats: float | None = Field(
        None, ge=0, description="maximum increase of the loss on general text, nats per token"
    )
    min_delta: float | None = Field(
        None, description="minimum gain of the main metric over the base; applies to every task"
    )
    min_thoughts_finished: float | None = Field(
        None, ge=0, le=1, description="thinking models: minimum share of thoughts that end within the token limit"
    )
    max_thinking_loss: float | None = Field(
        None, ge=0, description="thinking models: maximum decrease of the score with thinking, against the base"
    )
    min_switch_obeyed: float | None = Field(
        None, ge=0, le=1, description="thinking models: minimum share of answers that follow the switch, on and off"
    )

    @property
    def thinking(self) -> str:
        """The first gate on the thinking ledger that is set; empty if there is none."""
        names = ("min_thoughts_finished", "max_thinking_loss", "min_switch_obeyed")
        return next((name for name in names if getattr(self, name) is not None), "")


# Share of general rows mixed in for a domain close to general text, and for one far from it
# (Ibrahim et al. 2024, arXiv 2403.08763).
REPLAY_NEAR = 0.1
REPLAY_FAR = 0.33


class Replay(_Section):
    """General text mixed into the training rows to reduce forgetting."""

    share: float = Field(0.0, ge=0, lt=1, description="fraction of general rows among all training rows")
    source: str = Field(SELF, description="self: text sampled from the base model; or a file of texts, or a folder")


class Teacher(_Section):
    """Another model from whose answers a smaller or faster one learns."""

    model: ModelName = Field(
        "", description="run, base model, file.gguf, or a server as http://HOST/v1#NAME; empty: no teacher"
    )
    rows: str = Field("", description="rows without answers, which the teacher answers; they are only trained on")
    accuracy: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="share of right labels on validation rows, which sets the confidence from which a label is kept; "
        "auto: halfway from that of all labels to 1",
    )
    labels: Literal["soft", "hard"] = Field("soft", description="a linear head learns probabilities, or only labels")
    loss: Literal["answers", "forward_kl", "reverse_kl", "jsd"] = Field(
        "answers", description="instruct: learn answers, or the teacher's distribution at each of their tokens"
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: share of the teacher in the mixture")
    temperature: float = Field(1.0, gt=0, description="divides the logits of both under a divergence")
    on_policy: float = Field(
        0.0, ge=0, le=1, description="share of the batches whose answers the student samples, for the teacher to score"
    )


class Retention(_Section):
    """General ability before and after tuning, measured on decoders; 0 switches a part off, `false` both."""

    questions: int = Field(400, ge=0, le=400, description="multiple-choice questions, of the shipped 400; 0: none")
    texts: int = Field(12, ge=0, le=12, description="windows of general text whose loss is measured; 0: none")


class Verdict(_Section):
    """The test rows that base and tuned model answer, chosen at random before anything is scored."""

    minutes: Annotated[float, Field(gt=0, strict=True)] | Literal["auto", "all"] = Field(
        "auto",
        description="time for scoring base and tuned model and their general ability; all: every test row; auto: every "
        "test row, unless scoring more than 1,000 costs more than training",
    )


class Ledger(_Section):
    """The thinking ledger of a thinking model: answers with and without thoughts, before and after tuning.

    0 rows or `false`: none.
    """

    rows: int = Field(32, ge=0, description="held-out rows that base and tuned model answer both ways; 0: no ledger")
    max_new_tokens: int = Field(
        0, ge=0, description="longest thoughts and answer together, in tokens; 0: as for the tuned model"
    )


# Sections that may be given as one value, and the key of that value.
SHORT = {
    "objective": "kind",
    "technique": "kind",
    "data": "train",
    "documents": "source",
    "teacher": "model",
    "verdict": "minutes",
}
# Sections that `false` switches off, and the values that do so; `true` is short for the defaults.
SWITCHED_OFF = {"retention": {"questions": 0, "texts": 0}, "ledger": {"rows": 0}}


def expanded(section: str, value: Any) -> Any:
    """Expand a plain value such as `verdict: 5` or `retention: false` to a mapping; other values are unchanged.

    Args:
        section: name of the section.
        value: its value in the recipe.
    """
    if isinstance(value, Mapping | BaseModel):
        return value
    if section in SWITCHED_OFF and isinstance(value, bool):
        return {} if value else SWITCHED_OFF[section]
    return {SHORT[section]: value} if section in SHORT else value


def _expand(section: str) -> BeforeValidator:
    """Return the validator that expands the plain value of a section."""
    return BeforeValidator(partial(expanded, section))


class Documents(_Section):
    """Documents of the arms with retrieval, and how passages are retrieved."""

    source: str = Field(
        "", description="folder or file of documents, or rows with doc_id and text; empty: no documents"
    )
    size: int = Field(400, ge=80, description="maximum characters per chunk")
    search: Literal["fused", "words", "vectors"] = Field(
        "fused", description="words: BM25; vectors: embeddings; fused: both, by rank"
    )
    encoder: ModelName = Field("minilm-l6", description="embedding model")
    origin: str = Field("", description="column with the document that contains the answer")
    evidence: str = Field("", description="column with the passage that contains the answer; empty: the answer itself")


class Compare(_Section):
    """Settings of `tunesmith compare`: prompts, and the differences that justify a higher cost."""

    rows: int = Field(0, ge=0, description="number of test rows; 0: all")
    model: ModelName = Field("", description="decoder of the arms without tuning; empty: the model of the recipe")
    margin: float = Field(0.02, ge=0, description="minimum relevant gain, as a fraction of the scale of the metric")
    changed_facts: int = Field(
        20, ge=0, description="number of facts that are changed in the documents to test updates; 0: no test"
    )


# The arms of `compare`; the address of an OpenAI-compatible server is a further one.
ARMS = (
    "prompt",
    "few-shot",
    "rag",
    "tuned-retriever",
    "tuned-retriever+rerank",
    "tf-idf",
    "tuned",
    "tuned-30%",
    "tuned-10%",
    "tuned+rag",
    "raft",
    "tuned+tuned-retriever",
    "raft+tuned-retriever",
    "closed-book",
    "no-context",
    "oracle-context",
)


def _known_arm(name: str) -> str:
    """Validate the name of an arm or the address of a server."""
    if name in OLD_ARMS:
        warnings.warn(f"arm {name} is deprecated; use {OLD_ARMS[name]}", DeprecationWarning, stacklevel=2)
        return OLD_ARMS[name]
    if name not in ARMS and not name.startswith(("http://", "https://")):
        raise ValueError(f"unknown arm {name!r}{nearest(name, ARMS)}; known: {', '.join(ARMS)}, or http://HOST/v1")
    return name


def _listed(value: Any) -> Any:
    """Expand `arms: tuned` to `arms: [tuned]`."""
    return [value] if isinstance(value, str) else value


class Loop(_Section):
    """Rounds and judges of `tunesmith rlhf`."""

    rounds: int = Field(2, ge=1, description="number of rounds of judging and training")
    prompts: int = Field(64, ge=4, description="prompts per round, each with two answers to judge")
    judge: str = Field(
        PEOPLE,
        description="page: human raters, with `tunesmith feedback`; or a Python function `rules:score`, a simulation",
    )
    final_judge: str = Field(
        "",
        description="required: function or `reward` run that compares final and base model, not used in training",
    )
    held_out: int = Field(64, ge=4, description="test prompts of the final comparison")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the judged answers")


class Recipe(_Section):
    """All settings of a run."""

    model: ModelName = Field("smollm2-135m", description="alias, Hub id, folder or file.gguf")
    data: Data = Data()
    objective: AnyObjective
    technique: AnyTechnique = Lora()
    schedule: Schedule = Schedule()
    machine: Machine = Machine()
    replay: Replay = Replay()
    teacher: Annotated[Teacher, _expand("teacher")] = Teacher()
    gates: Gates = Gates()
    retention: Annotated[Retention, _expand("retention")] = Retention()
    ledger: Annotated[Ledger, _expand("ledger")] = Ledger()
    verdict: Annotated[Verdict, _expand("verdict")] = Verdict()
    loop: Loop = Loop()
    documents: Annotated[Documents, _expand("documents")] = Documents()
    arms: Annotated[list[Annotated[str, AfterValidator(_known_arm)]], BeforeValidator(_listed)] = Field(
        default_factory=list, description="arms to compare; empty: all that the rows allow"
    )
    compare: Compare = Compare()
    style: dict[str, dict[str, Any]] = Field(default_factory=dict, description="style rules for answers, by name")
    controls: bool = Field(
        False, description="also run controls: shuffled labels and a frozen model with a trained head"
    )
    canaries: int = Field(0, ge=0, le=300, description="secrets planted in training rows, to measure memorization")
    challenge: bool = Field(
        True, description="keep prompts and answers by which `tunesmith verify` recognizes the model, in challenge.json"
    )
    track: list[str] = Field(
        default_factory=list,
        description="experiment trackers: tensorboard, wandb, mlflow, trackio, comet_ml, clearml, swanlab",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random choices")

    @model_validator(mode="after")
    def _rows_are_named(self) -> Self:
        """Check that rows are named by the recipe, or by every task of a multitask recipe."""
        several = isinstance(self.objective, Multitask)
        named = [key for key, field in TaskRows.model_fields.items() if getattr(self.data, key) != _default(field)]
        if not several and not self.data.train:
            raise ValueError("data.train is missing; add it")
        if several and named:
            raise ValueError(f"data.{named[0]}: not allowed for multitask; write it under the data of each task")
        if isinstance(self.objective, Multitask) and len(self.objective.tasks) < 2:
            raise ValueError("objective.tasks: expected two or more tasks; use the objective of a single task directly")
        for name, task in self.objective.tasks.items() if isinstance(self.objective, Multitask) else ():
            if not task.data.train:
                raise ValueError(f"objective.tasks.{name}.data.train is missing; add it")
        return self

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        """Check that general text and thinking are measured if a gate limits them."""
        if self.gates.max_general_nats is not None and not self.retention.texts:
            raise ValueError(
                "gates.max_general_nats: the loss on general text is not measured, as retention.texts is 0; "
                "set retention.texts=12, or remove the gate"
            )
        if self.gates.thinking and not self.ledger.rows:
            raise ValueError(
                f"gates.{self.gates.thinking}: thinking is not measured, as ledger.rows is 0; "
                "set ledger.rows=32, or remove the gate"
            )
        return self

    @property
    def parts(self) -> dict[str, Recipe]:
        """The recipe of each task of a multitask recipe; empty for other objectives."""
        if not isinstance(self.objective, Multitask):
            return {}
        return {name: self._part(part) for name, part in self.objective.tasks.items()}

    @property
    def tasks(self) -> dict[str, Recipe]:
        """The recipe of each task; a recipe with a single task has one entry, `SINGLE_TASK`."""
        return self.parts or {SINGLE_TASK: self}

    def _part(self, part: TaskSection) -> Recipe:
        data = self.data.model_copy(update={key: getattr(part.data, key) for key in TaskRows.model_fields})
        return self.model_copy(update={"data": data, "objective": part.objective, "controls": False})


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def nearest(word: str, known: Sequence[str]) -> str:
    """Return `, did you mean ...?` with the nearest name; empty if none is near."""
    near = suggestion(word, known)
    return f", {near}" if near else ""
