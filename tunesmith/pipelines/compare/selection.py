"""Which arms a comparison has, and what is in the way of them: found before any arm is asked."""

from __future__ import annotations

from tunesmith.config import Recipe
from tunesmith.data.examples.types import Chat, Example
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import columns_of
from tunesmith.data.splits.load import check_names
from tunesmith.data.splits.split import Split
from tunesmith.errors import DataError, RecipeError
from tunesmith.inference.saved_model import MANIFEST_FILE, read_manifest
from tunesmith.models.families import family_of
from tunesmith.models.loading.load import locate
from tunesmith.models.loading.weight_files import read_json
from tunesmith.objectives import Classify, Instruct
from tunesmith.pipelines.compare.verdict import DIAGNOSIS

# Arms that ask the untuned model in words, which an encoder cannot answer.
PROMPTED = ("prompt", "few-shot", "rag", "no-context", "oracle-context", "closed-book")
NEED_DOCUMENTS = ("rag", "tuned+rag", "raft", "closed-book", "oracle-context")


def chosen_arms(recipe: Recipe, *, offline: bool = False) -> list[str]:
    """The arms of the recipe, or those that its rows and model allow. Raises RecipeError for what cannot work."""
    objective = recipe.objective
    if not isinstance(objective, Classify | Instruct):
        cure = "nearest that works: objective: instruct, or classify"
        raise RecipeError(f"compare: {objective.kind} rows ask nothing that every arm could answer; {cure}")
    arms = list(dict.fromkeys(recipe.arms)) or _usual(recipe, offline=offline)
    label = isinstance(objective, Classify)
    for arm in arms:
        _check(arm, recipe, label=label)
    if all(arm in DIAGNOSIS for arm in arms):
        raise RecipeError(f"arms: {', '.join(arms)} only show where others fail; name one to take, such as prompt")
    if len(arms) < 2:
        raise RecipeError(f"arms: {arms[0]} alone is no comparison; name another beside it")
    asked = [arm for arm in arms if arm in PROMPTED]
    if asked and not answers_prompts(recipe, offline=offline):
        cure = "add compare: {model: smollm2-135m}, or leave out the arms that prompt"
        named = f"{recipe.compare.model or recipe.model} is an encoder, which answers no prompt"
        raise RecipeError(f"arms: {named}; {cure} ({', '.join(asked)})")
    through_head = isinstance(recipe.objective, Classify) and (
        recipe.objective.output == "linear" or not _is_decoder(recipe.model, offline=offline)
    )
    if "tuned+rag" in arms and through_head:
        cure = "nearest that works: tuned"
        raise RecipeError(f"arms: tuned+rag reads passages and answers in words, and this run has a head; {cure}")
    return arms


def _usual(recipe: Recipe, *, offline: bool) -> list[str]:
    """What is compared where the recipe names no arms."""
    label, read = isinstance(recipe.objective, Classify), bool(recipe.documents.source)
    usual = ["prompt", "few-shot"] if not label or answers_prompts(recipe, offline=offline) else []
    usual += ["tf-idf"] if label else []
    usual += ["rag"] if read and not label else []
    usual += ["oracle-context"] if told_where(recipe) and not label else []
    return [*usual, "tuned", *(["tuned+rag", "raft"] if read and not label else [])]


def answers_prompts(recipe: Recipe, *, offline: bool) -> bool:
    """Whether the model that arms without tuning ask is a decoder."""
    return _is_decoder(recipe.compare.model or recipe.model, offline=offline)


def _is_decoder(name: str, *, offline: bool) -> bool:
    """Whether a model is a decoder, by its configuration alone."""
    if name.lower().endswith(".gguf"):
        return True
    folder = locate(name, offline=offline)
    if (folder / MANIFEST_FILE).is_file():  # a run, of an adapter perhaps, which has no configuration of a network
        return read_manifest(folder).family == "decoder"
    config = folder / "config.json"
    return not config.is_file() or family_of(read_json(config, where=name), where=name) == "decoder"


def _check(arm: str, recipe: Recipe, *, label: bool) -> None:
    """Raise RecipeError for an arm that these rows cannot have."""
    if arm in NEED_DOCUMENTS and not recipe.documents.source:
        raise RecipeError(f"arms: {arm} needs documents to look into; add `documents: FOLDER`, or leave it out")
    if arm == "oracle-context" and not told_where(recipe):
        cure = "name documents.evidence or documents.origin, or leave it out"
        raise RecipeError(f"arms: {arm} needs rows that say where their answer stands; {cure}")
    if arm == "tf-idf" and not label:
        raise RecipeError("arms: tf-idf answers with labels only; leave it out, or use objective: classify")
    if arm == "raft" and label:
        raise RecipeError("arms: raft learns answers from passages; nearest that works: objective: instruct, or tuned")


def told_where(recipe: Recipe) -> bool:
    """Whether rows say where in the documents their answer stands, without which a right chunk is a guess."""
    documents = recipe.documents
    return bool(documents.source and (documents.origin or documents.evidence))


def tunes(arms: list[str]) -> bool:
    """Whether an arm trains on the rows."""
    return any(arm.startswith("tuned") or arm == "raft" for arm in arms)


def _calls(example: Example) -> bool:
    """Whether tools may be called in a row, or were."""
    turns = example.messages if isinstance(example, Chat) else ()
    return any(turn.tools or turn.calls for turn in turns)


def check_rows(recipe: Recipe, split: Split, *, offline: bool) -> None:
    """Raise for rows that cannot be compared on: DataError for what the files lack, RecipeError for a wrong name."""
    data, documents = recipe.data, recipe.documents
    files = {place for place in (data.train, data.validation, data.test) if isinstance(place, str)}
    check_names((data.train, data.validation, data.test))
    for part, rows, fraction in (("validation", split.validation, 0.1), ("test", split.test, 0.2)):
        if not rows:
            use = "settings of arms are chosen" if part == "validation" else "arms are compared"
            raise DataError(f"data.{part}: no rows, and {use} on them; give a file, or a fraction such as {fraction}")
    server = next((arm for arm in recipe.arms if arm.startswith("http")), "")
    if server and (row := next((one for one in split.test if _calls(one)), None)) is not None:
        raise DataError(f"{row.where}: tools may be called, which {server} would not be told; leave that arm out")
    if told_where(recipe):
        there = columns_of(row for file in files for row in read_rows(file, offline=offline))
        for key, column in (("origin", documents.origin), ("evidence", documents.evidence)):
            if column and column not in there:
                raise RecipeError(f"documents.{key}: no column {column!r} in the rows; name one of {', '.join(there)}")
