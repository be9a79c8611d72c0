"""The arms, one function each: which model it asks, how, and with what it was chosen on validation rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from tunesmith.data.examples import Example, Labelled, Message
from tunesmith.decision.index import Hit
from tunesmith.decision.prompts import FORMS, with_shots
from tunesmith.decision.shots import Nearest
from tunesmith.evaluation.baselines import tfidf_labeller
from tunesmith.evaluation.tasks import value
from tunesmith.events import StageStarted
from tunesmith.inference.local import LocalModel
from tunesmith.inference.remote import Remote
from tunesmith.objectives import Classify, Instruct
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.workflows.answers import answer, gold, question, some
from tunesmith.workflows.asking import Ask, fitting, plainly, say, within, worded
from tunesmith.workflows.contest import Contest, Setting, room_of
from tunesmith.workflows.lessons import PASSAGES

# Validation rows that settings are chosen on; label scores are cheap, whole answers are not.
CHOICE_ROWS = {"classify": 60, "instruct": 24}
SHOTS, SHOWN = (1, 3, 5), (1, 3)


@dataclass(frozen=True, slots=True)
class Prompted:
    """An arm that puts messages to a model; `known` is what its answers carry beside them."""

    model: LocalModel | Remote
    ask: Ask
    detail: str
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabellingArm:
    """An arm that reads the rows and no prompt."""

    label: Callable[[Sequence[Example]], list[str]]
    detail: str
    known: Mapping[str, Any] = field(default_factory=dict)


Way = Prompted | LabellingArm


def way_of(contest: Contest, name: str, tuned: LocalModel | None = None) -> Way:
    """How an arm answers; `tuned` is the model that was made for it, where one was."""
    if tuned is not None:
        return TUNED[name.partition("-")[0]](contest, tuned)
    return UNTUNED[name](contest) if name in UNTUNED else _server(contest, name)


def _prompt(contest: Contest) -> Way:
    """The best of a few plain prompts."""
    wording = _wording(contest)
    ask: Ask = lambda rows: [worded(contest.base(), row, wording) for row in rows]  # noqa: E731  # an Ask by its type
    return Prompted(contest.base(), ask, _told(wording), _judged(contest))


def _told(wording: str) -> str:
    return f"asked: {wording or 'the instruction as written'}"


def _few_shot(contest: Contest) -> Way:
    """The best prompt after the training rows most like the question."""
    wording, learn = _wording(contest), contest.split.train
    nearest = Nearest([question(example) for example in learn])

    def ask(count: int, rows: Sequence[Example]) -> list[list[Message]]:
        near = nearest.to([question(row) for row in rows], count)
        return [shown(row, [learn[place] for place in places]) for row, places in zip(rows, near, strict=True)]

    def shown(row: Example, shots: Sequence[Example]) -> list[Message]:
        asked = worded(contest.base(), row, wording)
        return fitting(
            contest.base(), len(shots), lambda count: with_shots(contest.objective, asked, shots[:count], wording)
        )

    settings: list[Setting] = [[shots] for shots in SHOTS]
    count = int(_chosen(contest, "few-shot", settings, lambda setting: partial(ask, int(setting[0])))[0])
    told = f"{count} {'example' if count == 1 else 'examples'} each"
    return Prompted(contest.base(), partial(ask, count), told, _judged(contest, len(learn)))


def _rag(contest: Contest) -> Way:
    """The untuned model with the best chunks above the question."""
    return _read(contest, contest.base(), _reading(contest), _judged(contest))


def _oracle(contest: Contest) -> Way:
    """The same with a chunk that holds the answer, as if retrieval never failed."""
    _, form = _reading(contest)
    by_id = {chunk.id: Hit(chunk, 1.0) for chunk in contest.retrieval().index.chunks}

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        right = contest.retrieval().right(rows)
        hits = [[by_id[min(ids, key=_place)]] if ids else [] for ids in right]
        questions = plainly(contest, rows)
        return [within(contest.base(), asked, hit, form) for asked, hit in zip(questions, hits, strict=True)]

    return Prompted(contest.base(), ask, "a chunk that holds the answer is shown", _judged(contest))


def _place(chunk_id: str) -> tuple[str, int]:
    """Chunks in the order of their documents."""
    document, _, number = chunk_id.rpartition("#")
    return document, int(number)


def _no_context(contest: Contest) -> Way:
    """The question of the rag arm with nothing above it."""
    return Prompted(contest.base(), partial(plainly, contest), "the rows' own question, nothing shown")


def _tfidf(contest: Contest) -> Way:
    """Logistic regression over words and runs of characters: no language model at all."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.model_selection
    import sklearn.pipeline  # noqa: F401  # not timed: to import the library is no work of the arm

    objective = contest.objective
    began = time.perf_counter()
    assert isinstance(objective, Classify)
    train = [(row.text, row.labels[0]) for row in contest.split.train if isinstance(row, Labelled)]
    metric = "macro_f1" if objective.metric == "macro_f1" else "accuracy"
    label = tfidf_labeller(train, metric=metric, seed=contest.recipe.seed)
    known = {"build_seconds": time.perf_counter() - began, "labelled_rows": len(train)}
    return LabellingArm(lambda rows: label([question(row) for row in rows]), "settings by cross-validation", known)


def _tuned(contest: Contest, model: LocalModel) -> Way:
    """A run's model, asked as it was tuned."""
    if model.policy.head is None:
        return Prompted(model, partial(plainly, contest), "")
    return LabellingArm(lambda rows: answer(model, rows).given, "")


def _tuned_rag(contest: Contest, model: LocalModel) -> Way:
    """The tuned model given passages that it never saw in training."""
    model.limit = max(model.limit, room_of(model.policy))
    return _read(contest, model, _reading(contest, "tuned+rag", model))


def _raft(contest: Contest, model: LocalModel) -> Way:
    """A model tuned with passages and distractors in its rows, and given passages."""
    return _read(contest, model, (PASSAGES, FORMS[0]))


def _taught(contest: Contest, model: LocalModel) -> Way:
    """A model tuned on the documents themselves and their paraphrases, asked without any."""
    closed = LocalModel(model.policy, model.template, contest.objective, room_of(model.policy))
    return Prompted(closed, partial(plainly, contest, wording=_wording(contest)), "")


def _server(contest: Contest, address: str) -> Way:
    """A model behind an address, in the plain wording that it does best with; `URL#MODEL` names one of several."""
    server = remote(contest, address)
    settings: list[Setting] = [[wording] for wording in _wordings(contest)]

    def asker(setting: Setting) -> Ask:
        return partial(plainly, contest, wording=str(setting[0]))

    (wording,) = _chosen(contest, address, settings, asker, server)
    return Prompted(server, asker([wording]), _told(str(wording)), _judged(contest))


def remote(contest: Contest, address: str) -> Remote:
    """The server behind an address, which was reached. Raises DataError."""
    url, _, model = address.partition("#")
    server = Remote(url, model, contest.key, contest.offline).named()
    contest.check_same(url, server.model)  # answers that are kept are another's else
    return server


def _read(
    contest: Contest, model: LocalModel, reading: tuple[int, str], known: Mapping[str, Any] | None = None
) -> Prompted:
    """A model that is shown the best chunks; what is found is part of its time."""
    retrieval, (shown, form) = contest.retrieval(), reading
    model.limit = max(model.limit, room_of(model.policy))

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        found = retrieval.index.find([retrieval.asked(row) for row in rows], shown=shown)
        questions = plainly(contest, rows)
        return [within(model, asked, hits, form) for asked, hits in zip(questions, found, strict=True)]

    told = {"shown": shown, "form": form, "build_seconds": retrieval.seconds}
    return Prompted(model, ask, f"{shown} {'chunk' if shown == 1 else 'chunks'} shown", {**told, **(known or {})})


def _wording(contest: Contest) -> str:
    """The plain wording that does best on validation rows."""
    settings: list[Setting] = [[wording] for wording in _wordings(contest)]

    def asker(setting: Setting) -> Ask:
        return lambda rows: [worded(contest.base(), row, str(setting[0])) for row in rows]

    return str(_chosen(contest, "prompt", settings, asker)[0])


def _wordings(contest: Contest) -> tuple[str, ...]:
    """Plain ways to put the question, the recipe's own first."""
    return ("", *WORDINGS) if isinstance(contest.objective, Classify) else PLAIN_WORDINGS


def _reading(contest: Contest, name: str = "rag", tuned: LocalModel | None = None) -> tuple[int, str]:
    """How many chunks a model is shown and in which form, by validation rows."""
    retrieval = contest.retrieval()

    def asker(setting: Setting) -> Ask:
        shown, form = int(setting[0]), str(setting[1])

        def ask(rows: Sequence[Example]) -> list[list[Message]]:
            model = tuned or contest.base()
            found = [hits[:shown] for hits in retrieval.hits(rows)]
            return [within(model, asked, hits, form) for asked, hits in zip(plainly(contest, rows), found, strict=True)]

        return ask

    settings: list[Setting] = [[shown, form] for shown in SHOWN for form in FORMS]
    shown, form = _chosen(contest, name, settings, asker, tuned)
    return int(shown), str(form)


def _chosen(
    contest: Contest,
    name: str,
    settings: list[Setting],
    asker: Callable[[Setting], Ask],
    model: LocalModel | Remote | None = None,
) -> Setting:
    """The first of the settings with which a model, else the untuned one, scores best on some validation rows."""

    def choose() -> Setting:
        objective, rows = contest.objective, _judging(contest)
        contest.on_event(StageStarted(f"{name}: {len(settings)} settings on {len(rows)} validation rows"))
        given = _said(model or contest.base(), [asker(setting)(rows) for setting in settings], objective)
        scores = [value(objective.metric, gold(rows), one) for one in given]
        return settings[scores.index(max(scores))]

    return contest.choice(name, choose)


def _said(
    model: LocalModel | Remote, batches: Sequence[list[list[Message]]], objective: Classify | Instruct
) -> list[list[str]]:
    """What a model answers to each batch."""
    if isinstance(objective, Classify):  # what the questions of one wording begin with runs once
        return [say(model, batch, objective).given for batch in batches]
    given = iter(
        say(model, [asked for batch in batches for asked in batch], objective).given
    )  # in fewer, fuller passes
    return [list(islice(given, len(batch))) for batch in batches]


def _judging(contest: Contest) -> list[Example]:
    """The rows that settings are chosen on."""
    rows = contest.split.validation or contest.split.train
    return some(rows, CHOICE_ROWS[contest.objective.kind], contest.recipe.seed)


def _judged(contest: Contest, more: int = 0) -> dict[str, int]:
    """How many labelled rows an arm used: those, and `more`."""
    return {"labelled_rows": len(_judging(contest)) + more}


UNTUNED: dict[str, Callable[[Contest], Way]] = {
    "prompt": _prompt,
    "few-shot": _few_shot,
    "rag": _rag,
    "tf-idf": _tfidf,
    "no-context": _no_context,
    "oracle-context": _oracle,
}
# `tuned-30%` and `tuned-10%` are asked as `tuned` is.
TUNED: dict[str, Callable[[Contest, LocalModel], Way]] = {
    "tuned": _tuned,
    "tuned+rag": _tuned_rag,
    "raft": _raft,
    "taught": _taught,
}
