"""The arms: which model answers, how it is prompted, and which settings are chosen on validation rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.predict import accepted_answers, answer, question, subsample
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Remote
from tunesmith.metrics.baselines import tfidf_labeller
from tunesmith.metrics.task_scores import value
from tunesmith.pipelines.compare.answers import ArmSetting
from tunesmith.pipelines.compare.arm_kinds import kind_of
from tunesmith.pipelines.compare.context import (
    ComparisonContext,
    Retrieval,
    allow_long_prompts,
    max_prompt_tokens,
)
from tunesmith.pipelines.compare.prompting import (
    Prompt,
    PromptBuilder,
    ask_model,
    base_prompt,
    fit_messages,
    passage_prompts,
    plain_prompt,
)
from tunesmith.pipelines.compare.tuned_arms import PASSAGES
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import FORMS, Nearest, with_shots

# Validation rows for choosing settings: scoring labels is cheap, generating answers is not.
CHOICE_ROWS = {"labels": 60, "text": 24}
SHOTS = (1, 3, 5)
PASSAGES_SHOWN = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to answer the rows."""

    detail: str  # chosen settings, for the user
    labelled_rows: int = 0  # used by its settings
    build_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptArm(Arm):
    """An arm that prompts a model."""

    model: LocalModel | Remote
    prompts: PromptBuilder
    shown: int = 0  # greatest number of passages in a prompt
    form: str = ""  # template that joins passages and question


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierArm(Arm):
    """An arm that labels rows without a prompt."""

    label: Callable[[Sequence[Example]], list[str]]


def arm_for(
    context: ComparisonContext, name: str, tuned: LocalModel | None = None, *, retriever: str = "", reranker: str = ""
) -> Arm:
    """Build the arm of this name, or of the address of a server.

    Args:
        context: the comparison.
        name: name or address of the arm.
        tuned: the model of the run that answers, if it has one.
        retriever: folder of the run whose vectors find the chunks, if it has one.
        reranker: folder of the run that ranks them again, if it has one.

    Raises:
        CheckpointError: the run of its search is not given.
    """
    kind = kind_of(name)
    if (kind.retriever and not retriever) or (kind.reranker and not reranker):
        raise CheckpointError(f"{context.folder}: the answers of {name} are missing or changed; run compare again")
    if tuned is not None:
        return _tuned(context, name, tuned, retriever)
    if name == "few-shot":
        return _few_shot(context)
    if name == "oracle-context":
        return _oracle(context)
    if name == "tf-idf":
        return _tfidf(context)
    if name == "no-context":
        return _plain_arm(context, context.base(), detail="the question of the row, without passages")
    rows = len(_choice_rows(context))
    if name == "rag" or kind.retriever:
        retrieval = context.search_of(retriever, reranker)
        setting = _choose_passages(context, name, retrieval=retrieval)
        return _with_retrieval(context, context.base(), setting, retrieval=retrieval, labelled_rows=rows)
    if name == "prompt":
        wording = _wording(context)
        prompts = partial(_base_prompts, context, wording)
        return PromptArm(model=context.base(), prompts=prompts, detail=_wording_text(wording), labelled_rows=rows)
    server = remote(context, name)
    options = [ArmSetting(wording=wording) for wording in context.objective.prompt_templates("decoder")]
    wording = _choose(
        context, name, options, lambda setting: partial(_plain_prompts, context, setting.wording), model=server
    ).wording
    return _plain_arm(context, server, wording=wording, detail=_wording_text(wording), labelled_rows=rows)


def _tuned(context: ComparisonContext, name: str, model: LocalModel, retriever: str) -> Arm:
    """Build the arm of a run."""
    kind = kind_of(name)
    if kind.needs_documents and kind.trains_on == "rows":  # passages
        model, retrieval = allow_long_prompts(model), context.tuned_retrieval(retriever)
        if kind.run == "raft":  # as in its training rows
            setting = ArmSetting(shown=PASSAGES, form=FORMS[0])
        else:
            setting = _choose_passages(context, name, model, retrieval=retrieval)
        return _with_retrieval(context, model, setting, retrieval=retrieval)
    if name == "closed-book":  # trained on texts, so it answers by the objective of the comparison
        closed_book = replace(model, objective=context.objective, limit=max_prompt_tokens(model.policy))
        return _plain_arm(context, closed_book, wording=_wording(context))
    if model.policy.head is None:
        return _plain_arm(context, model)
    return ClassifierArm(label=lambda rows: answer(model, rows).given, detail="")


def _few_shot(context: ComparisonContext) -> Arm:
    """Build an arm: the best wording after the training rows most similar to the question."""
    wording, train = _wording(context), context.split.train
    nearest = Nearest([question(example) for example in train])

    def prompts(count: int, rows: Sequence[Example]) -> list[Prompt]:
        neighbours = nearest.to([question(row) for row in rows], count)
        return [prompt(row, [train[i] for i in indices]) for row, indices in zip(rows, neighbours, strict=True)]

    def prompt(row: Example, shots: Sequence[Example]) -> Prompt:
        messages = base_prompt(context, row, wording)
        _, filled = fit_messages(
            context.base(), len(shots), lambda count: with_shots(context.objective, messages, shots[:count], wording)
        )
        return Prompt(filled)

    options = [ArmSetting(shots=shots) for shots in SHOTS]
    count = _choose(context, "few-shot", options, lambda setting: partial(prompts, setting.shots)).shots
    return PromptArm(
        model=context.base(),
        prompts=partial(prompts, count),
        detail=f"{count} {'example' if count == 1 else 'examples'} each",
        labelled_rows=len(_choice_rows(context)) + len(train),
    )


def _oracle(context: ComparisonContext) -> Arm:
    """Build an arm: the base model with a chunk that contains the answer, as if retrieval never failed."""
    form = _choose_passages(context, "rag", retrieval=context.retrieval()).form
    chunks = context.retrieval().index.chunks
    # The first correct chunk by document and position.
    order = {chunk.id: (chunk.doc_id, position) for position, chunk in enumerate(chunks)}
    hits = {chunk.id: Hit(chunk, 1.0) for chunk in chunks}

    def prompts(rows: Sequence[Example]) -> list[Prompt]:
        correct = context.retrieval().correct(rows)
        shown = [[hits[min(ids, key=lambda chunk_id: order[chunk_id])]] if ids else [] for ids in correct]
        return passage_prompts(context, context.base(), rows, shown, form=form)

    return PromptArm(
        model=context.base(),
        prompts=prompts,
        detail="a chunk with the answer is in the prompt",
        labelled_rows=len(_choice_rows(context)),
    )


def _tfidf(context: ComparisonContext) -> Arm:
    """Logistic regression over TF-IDF of words and character n-grams, without a language model."""
    import sklearn.pipeline  # noqa: F401  # the import is not part of the measured time

    began = time.perf_counter()
    train = [(row.text, row.labels[0]) for row in context.split.train if isinstance(row, LabelledText)]
    metric = "macro_f1" if context.objective.metric == "macro_f1" else "accuracy"
    label = tfidf_labeller(train, metric=metric, seed=context.recipe.seed)
    return ClassifierArm(
        label=lambda rows: label([question(row) for row in rows]),
        detail="settings by cross-validation",
        labelled_rows=len(train),
        build_seconds=time.perf_counter() - began,
    )


def remote(context: ComparisonContext, address: str) -> Remote:
    """Connect to the server at `URL`, or `URL#MODEL` if it offers several models.

    Raises:
        DataError: the server cannot be reached.
        CheckpointError: it offers another model than the one whose answers are stored.
    """
    url, _, model = address.partition("#")
    server = Remote(url, model, context.key, context.offline).named()
    context.check_unchanged(url, server.model)
    return server


def _plain_arm(
    context: ComparisonContext,
    model: LocalModel | Remote,
    *,
    wording: str = "",
    detail: str = "",
    labelled_rows: int = 0,
) -> Arm:
    """Build an arm: a model with the question alone."""
    prompts = partial(_plain_prompts, context, wording)
    return PromptArm(model=model, prompts=prompts, detail=detail, labelled_rows=labelled_rows)


def _plain_prompts(context: ComparisonContext, wording: str, rows: Sequence[Example]) -> list[Prompt]:
    return [Prompt(messages) for messages in plain_prompt(context, rows, wording)]


def _base_prompts(context: ComparisonContext, wording: str, rows: Sequence[Example]) -> list[Prompt]:
    return [Prompt(base_prompt(context, row, wording)) for row in rows]


def _with_retrieval(
    context: ComparisonContext,
    model: LocalModel,
    setting: ArmSetting,
    *,
    retrieval: Retrieval,
    labelled_rows: int = 0,
) -> Arm:
    """Build an arm: a model with the best chunks before the question; searching is part of its time."""

    def prompts(rows: Sequence[Example]) -> list[Prompt]:
        hits = retrieval.index.find([retrieval.query(row) for row in rows], shown=setting.shown)
        return passage_prompts(context, model, rows, hits, form=setting.form)

    return PromptArm(
        model=model,
        prompts=prompts,
        detail=f"{setting.shown} {'chunk' if setting.shown == 1 else 'chunks'} shown",
        labelled_rows=labelled_rows,
        build_seconds=retrieval.seconds,
        shown=setting.shown,
        form=setting.form,
    )


def _wording(context: ComparisonContext) -> str:
    """Return the plain wording with the best score on validation rows."""
    options = [ArmSetting(wording=wording) for wording in context.objective.prompt_templates("decoder")]
    return _choose(context, "prompt", options, lambda setting: partial(_base_prompts, context, setting.wording)).wording


def _wording_text(wording: str) -> str:
    return f"prompt: {wording or 'the instruction of the recipe'}"


def _choose_passages(
    context: ComparisonContext, name: str, tuned: LocalModel | None = None, *, retrieval: Retrieval
) -> ArmSetting:
    """Return the number of chunks and their template with the best score on validation rows."""

    def prompts(setting: ArmSetting, rows: Sequence[Example]) -> list[Prompt]:
        hits = [row_hits[: setting.shown] for row_hits in retrieval.hits(rows)]
        return passage_prompts(context, tuned or context.base(), rows, hits, form=setting.form)

    options = [ArmSetting(shown=shown, form=form) for shown in PASSAGES_SHOWN for form in FORMS]
    return _choose(context, name, options, lambda setting: partial(prompts, setting), model=tuned)


def _choose(
    context: ComparisonContext,
    name: str,
    options: Sequence[ArmSetting],
    prompts: Callable[[ArmSetting], PromptBuilder],
    *,
    model: LocalModel | Remote | None = None,
) -> ArmSetting:
    """Return the first setting with the best score of the model, by default the base model, on validation rows."""

    def choose() -> ArmSetting:
        objective, rows = context.objective, _choice_rows(context)
        context.on_event(StageStarted(f"{name}: {len(options)} settings on {len(rows)} validation rows"))
        answering = model or context.base()
        batches = [[prompt.messages for prompt in prompts(setting)(rows)] for setting in options]
        if objective.known_labels:  # one call per wording: the beginning shared by its prompts is computed once
            given = [ask_model(answering, batch, objective).given for batch in batches]
        else:  # one call in all: generation is faster in fewer, larger batches
            joined = ask_model(answering, [messages for batch in batches for messages in batch], objective).given
            given = [joined[start : start + len(rows)] for start in range(0, len(joined), len(rows))]
        scores = [value(objective.metric, accepted_answers(rows), answers) for answers in given]
        return options[scores.index(max(scores))]

    return context.setting(name, choose)


def _choice_rows(context: ComparisonContext) -> list[Example]:
    """Return the rows on which settings are chosen."""
    rows = context.split.validation or context.split.train
    return subsample(rows, CHOICE_ROWS[context.objective.produces], context.recipe.seed)
