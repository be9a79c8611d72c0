"""The arms, one function each: which model it asks, how, and with what it was chosen on validation rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.predict import answer, question, reference_answers, subsample
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Remote
from tunesmith.metrics.baselines import tfidf_labeller
from tunesmith.metrics.task_scores import value
from tunesmith.objectives import Classify, Instruct
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.pipelines.compare.context import ComparisonContext, Setting, max_prompt_tokens
from tunesmith.pipelines.compare.prompting import Ask, ask_model, fit_messages, plain_prompt, within, worded
from tunesmith.pipelines.compare.tuned_arms import PASSAGES
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import FORMS, Nearest, with_shots

# Validation rows that settings are chosen on; label scores are cheap, whole answers are not.
CHOICE_ROWS = {"classify": 60, "instruct": 24}
SHOTS, PASSAGES_SHOWN = (1, 3, 5), (1, 3)


@dataclass(frozen=True, slots=True)
class PromptArm:
    """An arm that puts messages to a model; `known` is what its answers carry beside them."""

    model: LocalModel | Remote
    ask: Ask
    detail: str
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClassifierArm:
    """An arm that reads the rows and no prompt."""

    label: Callable[[Sequence[Example]], list[str]]
    detail: str
    known: Mapping[str, Any] = field(default_factory=dict)


Arm = PromptArm | ClassifierArm


def arm_for(context: ComparisonContext, name: str, tuned: LocalModel | None = None) -> Arm:
    """How an arm answers; `tuned` is the model that was made for it, where one was."""
    if tuned is not None:
        make = TUNED.get(name) or TUNED[name.partition("-")[0]]  # tuned-30% is read as tuned
        return make(context, tuned)
    return UNTUNED[name](context) if name in UNTUNED else _server(context, name)


def _prompt(context: ComparisonContext) -> Arm:
    """The best of a few plain prompts."""
    wording = _wording(context)
    ask: Ask = lambda rows: [worded(context.base(), row, wording) for row in rows]  # noqa: E731  # an Ask by its type
    return PromptArm(context.base(), ask, _told(wording), _judged(context))


def _told(wording: str) -> str:
    return f"asked: {wording or 'the instruction as written'}"


def _few_shot(context: ComparisonContext) -> Arm:
    """The best prompt after the training rows most like the question."""
    wording, learn = _wording(context), context.split.train
    nearest = Nearest([question(example) for example in learn])

    def ask(count: int, rows: Sequence[Example]) -> list[list[Message]]:
        near = nearest.to([question(row) for row in rows], count)
        return [shown(row, [learn[place] for place in places]) for row, places in zip(rows, near, strict=True)]

    def shown(row: Example, shots: Sequence[Example]) -> list[Message]:
        asked = worded(context.base(), row, wording)
        return fit_messages(
            context.base(), len(shots), lambda count: with_shots(context.objective, asked, shots[:count], wording)
        )

    settings: list[Setting] = [[shots] for shots in SHOTS]
    count = int(_chosen(context, "few-shot", settings, lambda setting: partial(ask, int(setting[0])))[0])
    told = f"{count} {'example' if count == 1 else 'examples'} each"
    return PromptArm(context.base(), partial(ask, count), told, _judged(context, len(learn)))


def _rag(context: ComparisonContext) -> Arm:
    """The untuned model with the best chunks above the question."""
    return _read(context, context.base(), _reading(context), _judged(context))


def _oracle(context: ComparisonContext) -> Arm:
    """The same with a chunk that holds the answer, as if retrieval never failed."""
    _, form = _reading(context)
    by_id = {chunk.id: Hit(chunk, 1.0) for chunk in context.retrieval().index.chunks}

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        right = context.retrieval().right(rows)
        hits = [[by_id[min(ids, key=_place)]] if ids else [] for ids in right]
        questions = plain_prompt(context, rows)
        return [within(context.base(), asked, hit, form) for asked, hit in zip(questions, hits, strict=True)]

    return PromptArm(context.base(), ask, "a chunk that holds the answer is shown", _judged(context))


def _place(chunk_id: str) -> tuple[str, int]:
    """Chunks in the order of their documents."""
    document, _, number = chunk_id.rpartition("#")
    return document, int(number)


def _no_context(context: ComparisonContext) -> Arm:
    """The question of the rag arm with nothing above it."""
    return PromptArm(context.base(), partial(plain_prompt, context), "the rows' own question, nothing shown")


def _tfidf(context: ComparisonContext) -> Arm:
    """Logistic regression over words and runs of characters: no language model at all."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.model_selection
    import sklearn.pipeline  # noqa: F401  # not timed: to import the library is no work of the arm

    objective = context.objective
    began = time.perf_counter()
    assert isinstance(objective, Classify)
    train = [(row.text, row.labels[0]) for row in context.split.train if isinstance(row, LabelledText)]
    metric = "macro_f1" if objective.metric == "macro_f1" else "accuracy"
    label = tfidf_labeller(train, metric=metric, seed=context.recipe.seed)
    known = {"build_seconds": time.perf_counter() - began, "labelled_rows": len(train)}
    return ClassifierArm(lambda rows: label([question(row) for row in rows]), "settings by cross-validation", known)


def _tuned(context: ComparisonContext, model: LocalModel) -> Arm:
    """A run's model, asked as it was tuned."""
    if model.policy.head is None:
        return PromptArm(model, partial(plain_prompt, context), "")
    return ClassifierArm(lambda rows: answer(model, rows).given, "")


def _tuned_rag(context: ComparisonContext, model: LocalModel) -> Arm:
    """The tuned model given passages that it never saw in training."""
    model.limit = max(model.limit, max_prompt_tokens(model.policy))
    return _read(context, model, _reading(context, "tuned+rag", model))


def _raft(context: ComparisonContext, model: LocalModel) -> Arm:
    """A model tuned with passages and distractors in its rows, and given passages."""
    return _read(context, model, (PASSAGES, FORMS[0]))


def _closed_book(context: ComparisonContext, model: LocalModel) -> Arm:
    """A model tuned on the documents themselves and their paraphrases, asked without any."""
    closed = LocalModel(model.policy, model.template, context.objective, max_prompt_tokens(model.policy))
    return PromptArm(closed, partial(plain_prompt, context, wording=_wording(context)), "")


def _server(context: ComparisonContext, address: str) -> Arm:
    """A model behind an address, in the plain wording that it does best with; `URL#MODEL` names one of several."""
    server = remote(context, address)
    settings: list[Setting] = [[wording] for wording in _wordings(context)]

    def asker(setting: Setting) -> Ask:
        return partial(plain_prompt, context, wording=str(setting[0]))

    (wording,) = _chosen(context, address, settings, asker, server)
    return PromptArm(server, asker([wording]), _told(str(wording)), _judged(context))


def remote(context: ComparisonContext, address: str) -> Remote:
    """The server behind an address, which was reached. Raises DataError."""
    url, _, model = address.partition("#")
    server = Remote(url, model, context.key, context.offline).named()
    context.check_same(url, server.model)  # answers that are kept are another's else
    return server


def _read(
    context: ComparisonContext, model: LocalModel, reading: tuple[int, str], known: Mapping[str, Any] | None = None
) -> PromptArm:
    """A model that is shown the best chunks; what is found is part of its time."""
    retrieval, (shown, form) = context.retrieval(), reading
    model.limit = max(model.limit, max_prompt_tokens(model.policy))

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        found = retrieval.index.find([retrieval.asked(row) for row in rows], shown=shown)
        questions = plain_prompt(context, rows)
        return [within(model, asked, hits, form) for asked, hits in zip(questions, found, strict=True)]

    told = {"shown": shown, "form": form, "build_seconds": retrieval.seconds}
    return PromptArm(model, ask, f"{shown} {'chunk' if shown == 1 else 'chunks'} shown", {**told, **(known or {})})


def _wording(context: ComparisonContext) -> str:
    """The plain wording that does best on validation rows."""
    settings: list[Setting] = [[wording] for wording in _wordings(context)]

    def asker(setting: Setting) -> Ask:
        return lambda rows: [worded(context.base(), row, str(setting[0])) for row in rows]

    return str(_chosen(context, "prompt", settings, asker)[0])


def _wordings(context: ComparisonContext) -> tuple[str, ...]:
    """Plain ways to put the question, the recipe's own first."""
    return ("", *WORDINGS) if isinstance(context.objective, Classify) else PLAIN_WORDINGS


def _reading(context: ComparisonContext, name: str = "rag", tuned: LocalModel | None = None) -> tuple[int, str]:
    """How many chunks a model is shown and in which form, by validation rows."""
    retrieval = context.retrieval()

    def asker(setting: Setting) -> Ask:
        shown, form = int(setting[0]), str(setting[1])

        def ask(rows: Sequence[Example]) -> list[list[Message]]:
            model = tuned or context.base()
            found = [hits[:shown] for hits in retrieval.hits(rows)]
            return [
                within(model, asked, hits, form) for asked, hits in zip(plain_prompt(context, rows), found, strict=True)
            ]

        return ask

    settings: list[Setting] = [[shown, form] for shown in PASSAGES_SHOWN for form in FORMS]
    shown, form = _chosen(context, name, settings, asker, tuned)
    return int(shown), str(form)


def _chosen(
    context: ComparisonContext,
    name: str,
    settings: list[Setting],
    asker: Callable[[Setting], Ask],
    model: LocalModel | Remote | None = None,
) -> Setting:
    """The first of the settings with which a model, else the untuned one, scores best on some validation rows."""

    def choose() -> Setting:
        objective, rows = context.objective, _judging(context)
        context.on_event(StageStarted(f"{name}: {len(settings)} settings on {len(rows)} validation rows"))
        given = _said(model or context.base(), [asker(setting)(rows) for setting in settings], objective)
        scores = [value(objective.metric, reference_answers(rows), one) for one in given]
        return settings[scores.index(max(scores))]

    return context.choice(name, choose)


def _said(
    model: LocalModel | Remote, batches: Sequence[list[list[Message]]], objective: Classify | Instruct
) -> list[list[str]]:
    """What a model answers to each batch."""
    if isinstance(objective, Classify):  # what the questions of one wording begin with runs once
        return [ask_model(model, batch, objective).given for batch in batches]
    given = iter(
        ask_model(model, [asked for batch in batches for asked in batch], objective).given
    )  # in fewer, fuller passes
    return [list(islice(given, len(batch))) for batch in batches]


def _judging(context: ComparisonContext) -> list[Example]:
    """The rows that settings are chosen on."""
    rows = context.split.validation or context.split.train
    return subsample(rows, CHOICE_ROWS[context.objective.kind], context.recipe.seed)


def _judged(context: ComparisonContext, more: int = 0) -> dict[str, int]:
    """How many labelled rows an arm used: those, and `more`."""
    return {"labelled_rows": len(_judging(context)) + more}


UNTUNED: dict[str, Callable[[ComparisonContext], Arm]] = {
    "prompt": _prompt,
    "few-shot": _few_shot,
    "rag": _rag,
    "tf-idf": _tfidf,
    "no-context": _no_context,
    "oracle-context": _oracle,
}
# `tuned-30%` and `tuned-10%` are asked as `tuned` is.
TUNED: dict[str, Callable[[ComparisonContext, LocalModel], Arm]] = {
    "tuned": _tuned,
    "tuned+rag": _tuned_rag,
    "raft": _raft,
    "closed-book": _closed_book,
}
