"""A whole run as one value: read, changed, saved; impossible recipes are refused here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, ValidationError

from tunesmith.aliases import translate
from tunesmith.errors import RecipeError
from tunesmith.objectives import OBJECTIVES, Classify, Domain, Instruct
from tunesmith.techniques import SHORTHANDS, TECHNIQUES, Full, Ia3, Lora, Prefix, Prompt, PTuning


class _Section(BaseModel):
    """A part of the recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """Where the rows come from and how they are split."""

    train: str = Field(description="file or Hub data set")
    validation: float | str = Field(0.1, description="fraction of the rows, or a file")
    test: float | str = Field(0.2, description="fraction of the rows, or a file")
    group: str = Field("", description="column whose values never straddle a split")
    where: dict[str, list[Any]] = Field(default_factory=dict, description="keep rows with these values")
    rows: int = Field(0, ge=0, description="use at most this many training rows; 0: all")
    max_tokens: int = Field(512, ge=16, description="longest row; longer prompts are shortened and counted")
    audit: Literal["stop", "note"] = Field(
        "stop", description="grave faults of the rows: end the run, or go on and say so"
    )


class Schedule(_Section):
    """How long and how fast."""

    epochs: float = Field(1, gt=0, description="passes over the training rows")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="peak; auto: by technique, family and width"
    )
    batch_rows: int = Field(16, ge=1, description="rows per optimizer step")
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens per forward pass; auto: 4096"
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps with rising rate; then cosine to a tenth")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    save_steps: int | Literal["auto"] = Field("auto", description="steps between checkpoints; auto: ten per run")
    eval_steps: int | Literal["auto"] = Field("auto", description="steps between validations; auto: six per run")
    patience: int = Field(3, ge=1, description="validations without improvement before stopping")
    probe: bool = Field(True, description="first see whether the model can learn eight rows at all")


class Machine(_Section):
    """What to run on; auto measures."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int = Field(0, ge=0, description="0: one per core")


def _by_kind(parts: Sequence[type[BaseModel]], shorthands: Mapping[str, Mapping[str, Any]]) -> Any:
    """A validator that turns `lora`, `dora` or {kind: lora, ...} into a mapping with a known kind."""
    kinds = {get_args(part.model_fields["kind"].annotation)[0] for part in parts}

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        kind = str(value.get("kind", ""))
        value |= shorthands.get(kind, {})
        if value.get("kind") not in kinds:
            known = sorted(kinds | set(shorthands))
            raise ValueError(f"unknown kind {kind!r}{_nearest(kind, known)}; known: {', '.join(known)}")
        return value

    return BeforeValidator(read)


AnyObjective = Annotated[Annotated[Classify | Domain | Instruct, Discriminator("kind")], _by_kind(OBJECTIVES, {})]
_Technique = Annotated[Full | Lora | Ia3 | Prompt | Prefix | PTuning, Discriminator("kind")]
AnyTechnique = Annotated[_Technique, _by_kind(TECHNIQUES, SHORTHANDS)]


class Gates(_Section):
    """Limits a run must stay within; one that is broken makes `tune` exit with 1."""

    max_general_nats: float | None = Field(None, ge=0, description="largest rise of nats per token on general text")
    min_delta: float | None = Field(None, description="smallest gain of the headline over the base")


class Replay(_Section):
    """General text mixed into the training rows, so that less of what the base knew is lost."""

    share: float = Field(0.0, ge=0, lt=1, description="share of general rows among all training rows")
    source: str = Field("self", description="self: what the base writes by itself; or a file of texts, or a folder")


class Recipe(_Section):
    """A whole run as one value."""

    model: str = Field("smollm2-135m", description="alias, Hub id, folder or file.gguf")
    data: Data
    objective: AnyObjective
    technique: AnyTechnique = Lora()
    schedule: Schedule = Schedule()
    machine: Machine = Machine()
    replay: Replay = Replay()
    gates: Gates = Gates()
    style: dict[str, dict[str, Any]] = Field(default_factory=dict, description="rules answers should keep, by name")
    controls: bool = Field(False, description="also tune on shuffled answers and a head alone: neither may win")
    track: list[str] = Field(default_factory=list, description="tensorboard, wandb, mlflow, trackio")
    seed: int = 0


def load_recipe(path: str | Path, *, changes: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe in a YAML file with `key=value` changes applied, and notes on names that were translated.

    Paths inside it count from the file's folder. Raises RecipeError.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise RecipeError(
            f"{path}: no such file; {f'did you mean {near[0]}?' if near else '`tunesmith init DATA` writes one'}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys, found {type(raw).__name__}; `tunesmith init DATA` writes one"
        )
    return make_recipe(raw, place=str(path), folder=path.parent, changes=changes)


def make_recipe(
    raw: Mapping[str, Any], *, place: str, folder: Path | None = None, changes: Sequence[str] = ()
) -> tuple[Recipe, list[str]]:
    """A checked recipe from plain values, and notes on names that were translated. Raises RecipeError."""
    values, notes = translate(raw)
    if isinstance(values.get("data"), str):
        values["data"] = {"train": values["data"]}
    for change in changes:
        _apply(values, change)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, place)) from None
    return (_anchored(recipe, folder) if folder else recipe), notes


def check_pair(recipe: Recipe, family: str) -> None:
    """Raise RecipeError if this objective cannot work with this model family or technique."""
    if family not in recipe.objective.families:
        raise RecipeError(
            f"objective {recipe.objective.kind}: needs a {' or '.join(recipe.objective.families)}, "
            f"{recipe.model} is an {family}; nearest that works: model: smollm2-135m, or objective: classify"
        )
    if recipe.controls and recipe.objective.kind == "domain":
        raise RecipeError("controls: texts have no answers to deal out at random; nearest that works: controls: false")
    if (
        recipe.objective.kind == "classify"
        and recipe.objective.output == "words"
        and (family == "encoder" or recipe.objective.multi)
    ):
        why = (
            "an encoder has no words to answer with"
            if family == "encoder"
            else "rows with several labels have no single answer"
        )
        raise RecipeError(f"objective classify: output: words cannot work, {why}; nearest that works: output: linear")


def check_technique(recipe: Recipe, network: Any, family: str) -> None:
    """Raise RecipeError if this network cannot be tuned by this technique."""
    if reason := recipe.technique.refusal(network, family=family):
        raise RecipeError(f"technique {recipe.technique.kind}: {reason}")


def check_replay(recipe: Recipe, family: str) -> None:
    """Raise RecipeError where general rows cannot be mixed in."""
    if not recipe.replay.share:
        return
    if recipe.objective.kind != "domain":
        raise RecipeError(f"replay: not for {recipe.objective.kind}; nearest that works: objective: domain")
    if recipe.replay.source == "self" and family == "encoder":
        raise RecipeError("replay.source: an encoder writes no text; nearest that works: source: a file of texts")


def check_gates(recipe: Recipe, family: str) -> None:
    """Raise RecipeError for a gate that nothing would ever measure."""
    gates = recipe.gates
    if gates.max_general_nats is not None and family == "encoder":
        raise RecipeError(
            f"gates.max_general_nats: {recipe.model} is an encoder, which predicts no next token of a general text; "
            "nearest that works: gates: {min_delta: 0.0}, or model: smollm2-135m"
        )


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    path.write_text(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with data paths that exist beside it made to start from its folder."""

    def anchor(value: float | str) -> float | str:
        beside = folder / value if isinstance(value, str) else None
        return str(beside) if beside is not None and not Path(str(value)).is_absolute() and beside.exists() else value

    data = recipe.data
    moved = {"train": anchor(data.train), "validation": anchor(data.validation), "test": anchor(data.test)}
    replay = recipe.replay.model_copy(update={"source": anchor(recipe.replay.source)})
    model = anchor(recipe.model) if "/" in recipe.model or recipe.model.endswith(".gguf") else recipe.model
    return recipe.model_copy(update={"data": data.model_copy(update=moved), "model": model, "replay": replay})


def _apply(values: dict[str, Any], change: str) -> None:
    """Set one dotted key: `technique.rank=8`."""
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set {change}: not key=value; write for example --set technique.rank=8")
    *parents, last = key.split(".")
    place = values
    for name in parents:
        inner = place.get(name)
        if isinstance(inner, str) and name in ("objective", "technique"):
            inner = {"kind": inner}
        if inner is None and name == "technique":
            inner = {"kind": Lora().kind}  # the recipe's own default, of which one option changes
        place[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        place = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {change}: the value is not YAML; quote it") from None
    if isinstance(value, Mapping) and not text.lstrip().startswith("{"):
        value = text  # "Summarise in one line:" is a sentence, not a mapping
    place[last] = value


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f", did you mean {near[0]!r}?" if near else ""


def _explain(error: ValidationError, place: str) -> str:
    """One line for the first fault: dotted path, finding, cure."""
    fault = error.errors()[0]
    path = [str(part) for part in fault["loc"]]
    section = _section(path)
    # pydantic names the chosen union member inside the path; people wrote no such key.
    dotted = ".".join(
        p
        for i, p in enumerate(path)
        if not (i == 1 and path[0] in ("objective", "technique") and p == p.lower() and p in _KINDS)
    )
    if fault["type"] == "extra_forbidden":
        known = sorted(section)
        return f"{place}: unknown key {dotted!r}{_nearest(path[-1], known)}; keys here: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{place}: {dotted} is missing; add it"
    finding = fault["msg"].removeprefix("Value error, ")
    return (
        f"{place}: {dotted}: {finding} (found {fault['input']!r})"
        if "unknown kind" not in finding
        else f"{place}: {dotted}: {finding}"
    )


_KINDS = {get_args(part.model_fields["kind"].annotation)[0] for part in (*OBJECTIVES, *TECHNIQUES)}


def _section(path: Sequence[str]) -> Mapping[str, Any]:
    """The fields of the section a path ends in."""
    models: dict[str, type[BaseModel]] = {"data": Data, "schedule": Schedule, "machine": Machine, "gates": Gates}
    models |= {"replay": Replay}
    for part in (*OBJECTIVES, *TECHNIQUES):
        models[get_args(part.model_fields["kind"].annotation)[0]] = part
    for name in reversed(path[:-1]):
        if name in models:
            return models[name].model_fields
    return Recipe.model_fields
