"""The parts of a recipe: typed, bounded and described once; docs and errors are read from here."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator
from pydantic.fields import FieldInfo

from tunesmith import objectives, techniques
from tunesmith.config.aliases import OLD_ARMS, VALUES
from tunesmith.objectives import OBJECTIVES, Multitask
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import SHORTHANDS, TECHNIQUES, Lora

# What stands for no file: the votes of a loop as its reward, people as its judge, what the base writes as general text.
VOTES, PEOPLE, SELF = "votes", "page", "self"


class _Section(BaseModel):
    """A part of the recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(TaskRows):
    """Where the rows come from, how they are split, and how long they may be."""

    max_tokens: int = Field(512, ge=16, description="longest row; longer prompts are shortened and counted")
    audit: Literal["stop", "note"] = Field(
        "stop", description="grave faults of the rows: end the run, or go on and say so"
    )


class Schedule(_Section):
    """How long and how fast."""

    epochs: float = Field(1, gt=0, le=10_000, description="passes over the training rows")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="peak; auto: by technique, family, width and objective"
    )
    batch_rows: int = Field(16, ge=1, description="rows per optimizer step")
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens per forward pass; auto: 4096"
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps with rising rate; then cosine to a tenth")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    save_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="steps between checkpoints; auto: ten per run, 0: one at the end"
    )
    eval_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="steps between validations; auto: six per run, 0: none, and no patience"
    )
    patience: int = Field(3, ge=1, description="validations without improvement before stopping")
    probe: bool = Field(True, description="first see whether the model can learn eight rows at all")


class Machine(_Section):
    """What to run on; auto measures."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(0, ge=0, le=1024, description="0: one per core")


def _by_kind(parts: Sequence[type[BaseModel]], shorthands: Mapping[str, Mapping[str, Any]]) -> Any:
    """A validator that turns `lora`, `DoRA`, PEFT's `PREFIX_TUNING` or {kind: lora} into a mapping of a known kind."""
    kinds = {get_args(part.model_fields["kind"].annotation)[0] for part in parts}
    known = sorted(kinds | set(shorthands))
    theirs = {word.lower(): ours for word, ours in VALUES["technique.kind"].items() if ours in kinds}
    words = {word.replace("_", "-"): ours for word, ours in (theirs | {word: word for word in known}).items()}

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        kind = str(value.get("kind", ""))
        kind = words.get(kind.strip().lower().replace("_", "-"), kind)
        short = shorthands.get(kind, {})
        value = {**short, **value, "kind": short.get("kind", kind)}
        if value.get("kind") not in kinds:
            raise ValueError(f"unknown kind {kind!r}{nearest(kind.lower(), known)}; known: {', '.join(known)}")
        return value

    return BeforeValidator(read)


_Objective = Annotated[objectives.AnyObjective, Discriminator("kind")]
AnyObjective = Annotated[_Objective, _by_kind(OBJECTIVES, {})]
_Technique = Annotated[techniques.AnyTechnique, Discriminator("kind")]
AnyTechnique = Annotated[_Technique, _by_kind(TECHNIQUES, SHORTHANDS)]


class Gates(_Section):
    """Limits a run must stay within; one that is broken makes `tune` exit with 1."""

    max_general_nats: float | None = Field(None, ge=0, description="largest rise of nats per token on general text")
    min_delta: float | None = Field(
        None, description="smallest gain of the headline over the base; of several tasks, of each"
    )


# Share of general rows mixed in for a domain close to general text, and for one far from it
# (Ibrahim et al. 2024, arXiv 2403.08763).
REPLAY_NEAR = 0.1
REPLAY_FAR = 0.33


class Replay(_Section):
    """General text mixed into the training rows, so that less of what the base knew is lost."""

    share: float = Field(0.0, ge=0, lt=1, description="share of general rows among all training rows")
    source: str = Field(SELF, description="self: what the base writes by itself; or a file of texts, or a folder")


class Documents(_Section):
    """What arms with retrieval may look into, and how a passage is found in it."""

    source: str = Field("", description="folder or file of documents, or rows with doc_id and text; empty: none")
    size: int = Field(400, ge=80, description="characters of the longest chunk")
    search: Literal["fused", "words", "vectors"] = Field("fused", description="BM25, vectors, or both by their ranks")
    encoder: str = Field("minilm-l6", description="model that makes the vectors")
    origin: str = Field("", description="column of the rows that names the document of the answer")
    evidence: str = Field("", description="column with the words of the document that answer; empty: the answer")


class Compare(_Section):
    """How `tunesmith compare` asks and when a difference is worth its cost."""

    rows: int = Field(0, ge=0, description="test rows that every arm answers; 0: all")
    model: str = Field("", description="decoder that arms without tuning ask; empty: the model")
    margin: float = Field(0.02, ge=0, description="least gain, as a share of the scale, that is worth any cost")
    changed_facts: int = Field(20, ge=0, description="facts that are changed in the documents; 0: none")


# Ways to answer that `compare` knows; the address of an OpenAI-compatible server is one more.
ARMS = (
    "prompt",
    "few-shot",
    "rag",
    "tf-idf",
    "tuned",
    "tuned-30%",
    "tuned-10%",
    "tuned+rag",
    "raft",
    "closed-book",
    "no-context",
    "oracle-context",
)


def _known_arm(name: str) -> str:
    """The name of an arm, or an address."""
    if name in OLD_ARMS:
        warnings.warn(f"arm {name} is deprecated; use {OLD_ARMS[name]}", DeprecationWarning, stacklevel=2)
        return OLD_ARMS[name]
    if name not in ARMS and not name.startswith(("http://", "https://")):
        raise ValueError(f"unknown arm {name!r}{nearest(name, ARMS)}; known: {', '.join(ARMS)}, or http://HOST/v1")
    return name


def _source(value: Any) -> Any:
    """`documents: manual/` is short for `documents: {source: manual/}`."""
    return {"source": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """`arms: tuned` is short for `arms: [tuned]`."""
    return [value] if isinstance(value, str) else value


class Loop(_Section):
    """How often people judge and the model learns from it, for `tunesmith rlhf`, and who judges."""

    rounds: int = Field(2, ge=1, description="times that answers are judged and learned from")
    prompts: int = Field(64, ge=4, description="prompts that are answered twice and judged in each round")
    judge: str = Field(
        PEOPLE, description="page: people, with `tunesmith feedback`; or a Python function `rules:score`, a simulation"
    )
    final_judge: str = Field(
        "", description="needed: a function or a `reward` run that trains nothing and judges the end against the start"
    )
    held_out: int = Field(64, ge=4, description="test prompts that the end and the start answer")
    temperature: float = Field(1.0, gt=0, description="of the answers that are judged")


class Recipe(_Section):
    """A whole run as one value."""

    model: str = Field("smollm2-135m", description="alias, Hub id, folder or file.gguf")
    data: Data = Data()
    objective: AnyObjective
    technique: AnyTechnique = Lora()
    schedule: Schedule = Schedule()
    machine: Machine = Machine()
    replay: Replay = Replay()
    gates: Gates = Gates()
    loop: Loop = Loop()
    documents: Annotated[Documents, BeforeValidator(_source)] = Documents()
    arms: Annotated[list[Annotated[str, AfterValidator(_known_arm)]], BeforeValidator(_listed)] = Field(
        default_factory=list, description="ways to answer that are compared; empty: those that the rows allow"
    )
    compare: Compare = Compare()
    style: dict[str, dict[str, Any]] = Field(default_factory=dict, description="rules answers should keep, by name")
    controls: bool = Field(False, description="also tune on shuffled answers and a head alone: neither may win")
    track: list[str] = Field(default_factory=list, description="tensorboard, wandb, mlflow, trackio")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _rows_are_named(self) -> Self:
        """A recipe of one task names its rows, one of several leaves that to the tasks."""
        several = isinstance(self.objective, Multitask)
        named = [key for key, field in TaskRows.model_fields.items() if getattr(self.data, key) != _default(field)]
        if not several and not self.data.train:
            raise ValueError("data.train is missing; add it")
        if several and named:
            raise ValueError(f"data.{named[0]}: each task names its own rows; write it under the task's own data")
        if isinstance(self.objective, Multitask) and len(self.objective.tasks) < 2:
            raise ValueError("objective.tasks: name two tasks or more; one alone is an objective of its own")
        for name, task in self.objective.tasks.items() if isinstance(self.objective, Multitask) else ():
            if not task.data.train:
                raise ValueError(f"objective.tasks.{name}.data.train is missing; add it")
        return self

    @property
    def parts(self) -> dict[str, Recipe]:
        """Each task of a multitask recipe as a recipe of its own; none for other objectives."""
        if not isinstance(self.objective, Multitask):
            return {}
        return {name: self._part(part) for name, part in self.objective.tasks.items()}

    @property
    def tasks(self) -> dict[str, Recipe]:
        """Each task as a recipe of its own; a recipe with a single task has one entry, `SINGLE_TASK`."""
        return self.parts or {SINGLE_TASK: self}

    def _part(self, part: TaskSection) -> Recipe:
        data = self.data.model_copy(update={key: getattr(part.data, key) for key in TaskRows.model_fields})
        return self.model_copy(update={"data": data, "objective": part.objective, "controls": False})


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def nearest(word: str, known: Sequence[str]) -> str:
    """A question after the nearest of some names; empty where none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f", did you mean {near[0]!r}?" if near else ""
