"""The arms, one function each: how it asks, with what it is chosen on validation rows, and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from tunesmith.data.examples import Example, Labelled, Message
from tunesmith.decision.index import Hit
from tunesmith.decision.prompts import FORMS, with_shots
from tunesmith.decision.shots import Nearest
from tunesmith.evaluation.baselines import tfidf_labeller
from tunesmith.evaluation.tasks import value
from tunesmith.inference.local import LocalModel
from tunesmith.inference.remote import Remote
from tunesmith.objectives import Classify
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.workflows.answers import gold, question
from tunesmith.workflows.asking import Ask, ask_all, ask_tuned, fitting, pace, plainly, say, with_cites, within, worded
from tunesmith.workflows.contest import Answered, Contest, Setting, room_of, some
from tunesmith.workflows.lessons import PASSAGES, raft_run, taught_run, tuned_run

# Validation rows that settings are chosen on; label scores are cheap, whole answers are not.
CHOICE_ROWS = {"classify": 60, "instruct": 24}
SHOTS, SHOWN = (1, 3, 5), (1, 3)


def answered(contest: Contest, name: str) -> Answered:
    """What an arm says to the test rows: from the disk, or asked now and kept."""
    if (kept := contest.kept(name)) is not None:
        return kept
    way = WAYS.get(name)
    return contest.keep(way(contest) if way else _server(contest, name))


def _prompt(contest: Contest) -> Answered:
    """The best of a few plain prompts."""
    wording = _wording(contest)
    ask: Ask = lambda rows: [worded(contest.base(), row, wording) for row in rows]  # noqa: E731  # an Ask by its type
    found = ask_all(contest, "prompt", contest.base(), ask, detail=_told(wording))
    return found.model_copy(update={"labelled_rows": len(_judging(contest))})


def _told(wording: str) -> str:
    return f"asked: {wording or 'the instruction as written'}"


def _few_shot(contest: Contest) -> Answered:
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
    found = ask_all(
        contest,
        "few-shot",
        contest.base(),
        partial(ask, count),
        detail=f"{count} {'example' if count == 1 else 'examples'} each",
    )
    return found.model_copy(update={"labelled_rows": len(learn) + len(_judging(contest))})


def _rag(contest: Contest) -> Answered:
    """The untuned model with the best chunks above the question."""
    shown, form = _reading(contest)
    return _read(contest, "rag", contest.base(), shown, form)


def _oracle(contest: Contest) -> Answered:
    """The same with a chunk that holds the answer, as if retrieval never failed."""
    _, form = _reading(contest)
    by_id = {chunk.id: Hit(chunk, 1.0) for chunk in contest.retrieval().index.chunks}

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        right = contest.retrieval().right(rows)
        hits = [[by_id[min(ids, key=_place)]] if ids else [] for ids in right]
        questions = plainly(contest, rows)
        return [within(contest.base(), asked, hit, form) for asked, hit in zip(questions, hits, strict=True)]

    return ask_all(contest, "oracle-context", contest.base(), ask, detail="a chunk that holds the answer is shown")


def _place(chunk_id: str) -> tuple[str, int]:
    """Chunks in the order of their documents."""
    document, _, number = chunk_id.rpartition("#")
    return document, int(number)


def _no_context(contest: Contest) -> Answered:
    """The question of the rag arm with nothing above it."""
    ask: Ask = lambda rows: plainly(contest, rows)  # noqa: E731  # an Ask by its type
    return ask_all(contest, "no-context", contest.base(), ask, detail="the rows' own question, nothing shown")


def _tfidf(contest: Contest) -> Answered:
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
    build = time.perf_counter() - began
    found = pace(contest, "tf-idf", lambda rows: label([question(row) for row in rows]))
    how = {"detail": "settings by cross-validation", "build_seconds": build, "labelled_rows": len(train)}
    return found.model_copy(update=how)


def _tuned(contest: Contest, percent: int = 100) -> Answered:
    """A run of this very recipe, or of a part of its rows, asked as it was tuned."""
    run = tuned_run(contest, percent)
    name = "tuned" if percent == 100 else f"tuned-{percent}%"
    return run.built(ask_tuned(contest, name, contest.tuned(run.folder), detail=run.note))


def _tuned_rag(contest: Contest) -> Answered:
    """The tuned model given passages that it never saw in training."""
    run = tuned_run(contest)
    model = contest.tuned(run.folder)
    model.limit = max(model.limit, room_of(model.policy))
    shown, form = _reading(contest, "tuned+rag", model)
    return run.built(_read(contest, "tuned+rag", model, shown, form))


def _raft(contest: Contest) -> Answered:
    """Tuned with passages and distractors in its rows, and given passages."""
    run = raft_run(contest)
    return run.built(_read(contest, "raft", contest.tuned(run.folder), PASSAGES, FORMS[0]))


def _taught(contest: Contest) -> Answered:
    """Tuned on the documents themselves and their paraphrases, asked without any."""
    run = taught_run(contest)
    model = contest.tuned(run.folder)
    closed = LocalModel(model.policy, model.template, contest.objective, room_of(model.policy))
    wording = _wording(contest)
    ask: Ask = lambda rows: plainly(contest, rows, wording)  # noqa: E731  # an Ask by its type
    return run.built(ask_all(contest, "taught", closed, ask, detail=run.note))


def _server(contest: Contest, address: str) -> Answered:
    """A model behind an address, in the plain wording that it does best with; `URL#MODEL` names one of several."""
    server = remote(contest, address)
    settings: list[Setting] = [[wording] for wording in _wordings(contest)]

    def asker(setting: Setting) -> Ask:
        return lambda rows: plainly(contest, rows, str(setting[0]))

    (wording,) = _chosen(contest, address, settings, asker, server)
    found = ask_all(contest, address, server, asker([wording]), detail=_told(str(wording)))
    return found.model_copy(update={"labelled_rows": len(_judging(contest))})


def remote(contest: Contest, address: str) -> Remote:
    """The server behind an address, which was reached. Raises DataError."""
    url, _, model = address.partition("#")
    return Remote(url, model, contest.key, contest.offline).named()


def _read(contest: Contest, name: str, model: LocalModel, shown: int, form: str) -> Answered:
    """An arm that is shown the best chunks; what is found is part of its time."""
    retrieval = contest.retrieval()
    model.limit = max(model.limit, room_of(model.policy))

    def ask(rows: Sequence[Example]) -> list[list[Message]]:
        found = retrieval.index.find([retrieval.asked(row) for row in rows], shown=shown)
        questions = plainly(contest, rows)
        return [within(model, asked, hits, form) for asked, hits in zip(questions, found, strict=True)]

    found = ask_all(contest, name, model, ask, detail=f"{shown} {'chunk' if shown == 1 else 'chunks'} shown")
    known = {"shown": shown, "form": form, "build_seconds": retrieval.seconds}
    return with_cites(contest, found.model_copy(update={**known, "labelled_rows": len(_judging(contest))}))


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
        contest.listen({"event": "stage", "text": f"{name}: {len(settings)} settings on {len(rows)} validation rows"})
        asked, right = model or contest.base(), gold(rows)
        scores = [value(objective.metric, right, say(asked, asker(each)(rows), objective).given) for each in settings]
        return settings[scores.index(max(scores))]

    return contest.choice(name, choose)


def _judging(contest: Contest) -> list[Example]:
    """The rows that settings are chosen on."""
    rows = contest.split.validation or contest.split.train
    return some(rows, CHOICE_ROWS[contest.objective.kind], contest.recipe.seed)


WAYS: dict[str, Callable[[Contest], Answered]] = {
    "prompt": _prompt,
    "few-shot": _few_shot,
    "rag": _rag,
    "tf-idf": _tfidf,
    "tuned": _tuned,
    "tuned-30%": partial(_tuned, percent=30),
    "tuned-10%": partial(_tuned, percent=10),
    "tuned+rag": _tuned_rag,
    "raft": _raft,
    "taught": _taught,
    "no-context": _no_context,
    "oracle-context": _oracle,
}
