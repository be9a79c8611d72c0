"""Selection of the arms, and checks of recipe and rows before any arm runs."""

from __future__ import annotations

from tunesmith.config import AnyObjective, Recipe
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import columns_of
from tunesmith.data.splits.load import check_names
from tunesmith.data.splits.split import Split
from tunesmith.errors import DataError, RecipeError
from tunesmith.inference.identify import MANIFEST_FILE, read_manifest
from tunesmith.models.families import family_of
from tunesmith.models.loading.locate import locate
from tunesmith.models.loading.weight_files import read_json
from tunesmith.pipelines.compare.arm_kinds import kind_of


def chosen_arms(recipe: Recipe, *, offline: bool = False) -> list[str]:
    """Return the arms of the recipe, or those that suit its rows and model.

    Raises:
        RecipeError: an arm cannot work with these rows or models, or there is nothing to compare.
    """
    objective = comparable_objective(recipe)
    arms = list(dict.fromkeys(recipe.arms)) or _default_arms(recipe, offline=offline)
    for arm in arms:
        _check_arm(arm, recipe, offline=offline)
    if all(kind_of(arm).diagnostic for arm in arms):
        raise RecipeError(f"arms: {', '.join(arms)} are diagnostic and never recommended; add one such as prompt")
    if len(arms) < 2:
        raise RecipeError(f"arms: expected two or more, got {arms[0]}; add another")
    prompting = [arm for arm in arms if kind_of(arm).prompts_base]
    if prompting and not answers_prompts(recipe, offline=offline):
        fix = "add compare: {model: smollm2-135m}, or remove the arms that prompt"
        name = recipe.compare.model or recipe.model
        raise RecipeError(f"arms: {name} is an encoder, which answers no prompt; {fix} ({', '.join(prompting)})")
    shown = [arm for arm in arms if kind_of(arm).run == "tuned" and kind_of(arm).needs_documents]
    if (
        shown
        and objective.kind == "classify"
        and (objective.output == "linear" or not is_decoder(recipe.model, offline=offline))
    ):
        fix = "nearest that works: tuned"
        raise RecipeError(f"arms: {shown[0]} needs a model that answers in words, and this run has a head; {fix}")
    return arms


def comparable_objective(recipe: Recipe) -> AnyObjective:
    """Return the objective of a recipe whose rows have one answer each. Raises RecipeError for another objective."""
    objective = recipe.objective
    if not objective.has_reference_answers:
        fix = "nearest that works: objective: instruct, or classify"
        raise RecipeError(f"compare: {objective.kind} rows have no answer that every arm can give; {fix}")
    return objective


def _default_arms(recipe: Recipe, *, offline: bool) -> list[str]:
    """Return the arms for a recipe that lists none."""
    documents = bool(recipe.documents.source)
    if recipe.objective.produces == "labels":
        prompting = ["prompt", "few-shot"] if answers_prompts(recipe, offline=offline) else []
        return [*prompting, "tf-idf", "tuned"]
    retrieval = ["rag"] if documents else []
    oracle = ["oracle-context"] if has_origins(recipe) else []
    tuned = ["tuned+rag", "raft"] if documents else []
    return ["prompt", "few-shot", *retrieval, *oracle, "tuned", *tuned]


def answers_prompts(recipe: Recipe, *, offline: bool) -> bool:
    """Return whether the model of the arms without tuning, `compare.model` or else that of the recipe, is a decoder."""
    return is_decoder(recipe.compare.model or recipe.model, offline=offline)


def is_decoder(name: str, *, offline: bool) -> bool:
    """Return whether a model is a decoder, by its configuration alone."""
    if name.lower().endswith(".gguf"):
        return True
    folder = locate(name, offline=offline)
    if (folder / MANIFEST_FILE).is_file():  # a run; one of an adapter has no configuration of a network
        return read_manifest(folder).family == "decoder"
    config = folder / "config.json"
    return not config.is_file() or family_of(read_json(config, where=name), where=name) == "decoder"


def _check_arm(arm: str, recipe: Recipe, *, offline: bool) -> None:
    """Raise RecipeError for an arm that cannot work with these rows."""
    labels = recipe.objective.produces == "labels"
    if kind_of(arm).needs_documents and not recipe.documents.source:
        raise RecipeError(f"arms: {arm} needs documents; add `documents: FOLDER`, or remove the arm")
    if arm == "oracle-context" and not has_origins(recipe):
        fix = "set documents.evidence or documents.origin, or remove the arm"
        raise RecipeError(f"arms: {arm} needs rows that name the source of their answer; {fix}")
    if arm == "tf-idf" and not labels:
        raise RecipeError("arms: tf-idf answers with labels only; remove it, or use objective: classify")
    if kind_of(arm).retriever and labels and not recipe.documents.evidence:
        fix = "set documents.evidence, or remove the arm"
        raise RecipeError(f"arms: {arm} learns which chunk contains the answer, and a label is in none; {fix}")
    if kind_of(arm).reranker and is_decoder(recipe.documents.encoder, offline=offline):
        fix = "set documents.encoder to one such as minilm-l6, or remove the arm"
        raise RecipeError(f"arms: {arm} needs an encoder, which reads question and chunk together; {fix}")
    if kind_of(arm).run == "raft" and labels:
        raise RecipeError(
            f"arms: {arm} learns answers from passages; nearest that works: objective: instruct, or tuned"
        )


def has_origins(recipe: Recipe) -> bool:
    """Return whether rows name the source of their answer in the documents, which defines the correct chunk."""
    documents = recipe.documents
    return bool(documents.source and (documents.origin or documents.evidence))


def check_rows(recipe: Recipe, split: Split, *, offline: bool) -> None:
    """Check that the rows can be compared on.

    Raises:
        DataError: there are no validation or test rows, or a server cannot be given the tools of a row.
        RecipeError: a column of `documents` does not exist.
    """
    data, documents = recipe.data, recipe.documents
    check_names((data.train, data.validation, data.test))
    if not split.validation:
        fix = "give a file, or a fraction such as 0.1"
        raise DataError(f"data.validation: no rows, which are needed to choose settings of the arms; {fix}")
    if not split.test:
        fix = "give a file, or a fraction such as 0.2"
        raise DataError(f"data.test: no rows, which are needed to compare the arms; {fix}")
    server = next((arm for arm in recipe.arms if kind_of(arm).remote), "")
    for row in split.test if server else ():
        if isinstance(row, Chat) and any(turn.tools or turn.calls for turn in row.messages):
            raise DataError(f"{row.where}: tools cannot be passed to {server}; remove that arm")
    if has_origins(recipe):
        files = {file for file in (data.train, data.validation, data.test) if isinstance(file, str)}
        columns = columns_of(row for file in files for row in read_rows(file, offline=offline))
        for key, column in (("origin", documents.origin), ("evidence", documents.evidence)):
            if column and column not in columns:
                raise RecipeError(f"documents.{key}: no column {column!r}; name one of {', '.join(columns)}")
