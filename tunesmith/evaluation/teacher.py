"""Answers of a teacher: to rows without answers, which a student then learns from, and to the test rows.

Labels are kept from the calibrated confidence at which the teacher labels enough validation rows right; these rows
stay as they are, so that no answer of a model is ever in validation or test. Every call is kept in the run folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import AnyObjective
from tunesmith.config import Teacher as Section
from tunesmith.data.examples.parsers import DIALOGUES, text_key
from tunesmith.data.examples.parsers import question as prompt_key
from tunesmith.data.examples.prompts import prompt_column
from tunesmith.data.examples.types import Chat, Example, Text
from tunesmith.data.files import write_whole
from tunesmith.data.readers.read import RowStream, large_file, read_rows
from tunesmith.data.readers.row import Row, columns_of, keep
from tunesmith.data.schema.cells import cell, has_column
from tunesmith.data.schema.choices import choices_of
from tunesmith.data.schema.values import is_nothing
from tunesmith.data.splits.load import FIRST_ROWS
from tunesmith.data.splits.near_duplicates import PROMPT_RULE, RULE, near_copies
from tunesmith.data.stored import joined
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.messages import turn_of, turns_in
from tunesmith.display import model_label
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.evaluation.contamination import find_seen_rows
from tunesmith.evaluation.predict import (
    CHOICE_ROWS,
    AnswerSet,
    answer,
    best_wording,
    question,
    reference_answers,
    subsample,
)
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.identify import identify
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Remote
from tunesmith.metrics import calibration
from tunesmith.metrics.resampling import wilson
from tunesmith.metrics.style import habits
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.kept_answers import answer_clock
from tunesmith.models.loading.quantization import count_parameters, resident_bytes
from tunesmith.models.world import alone
from tunesmith.phases import phase
from tunesmith.progress import track
from tunesmith.training.journal import append_call, finished_calls
from tunesmith.training.prepare import TrainingContext, encode_all, open_teacher
from tunesmith.training.read import Reader

# Answers of all calls, and the rows made of them, in a run folder.
FILE, ROWS_FILE, TEST_FILE = "teacher.jsonl", "teacher_rows.jsonl", "teacher_test.jsonl"
# Fewest validation rows that choose a threshold, and of these fewest above it. Chosen, not measured.
FEWEST_CHECKED, FEWEST_ABOVE = 20, 5
# Rows per call. Each call is kept, so that an interrupted run continues behind it.
LOCAL_ROWS, SERVER_ROWS = 128, 16
# Names in reports: of the teacher, also as the mark of rows that it has written, of the student tuned without it, and
# of the student.
TEACHER, GOLD, STUDENT = "teacher", "gold rows alone", "student"


@dataclass(frozen=True, slots=True)
class Call:
    """The answers to some rows, and how long they took; with probabilities [N, K] of the labels, if there are any."""

    given: list[str]
    finished: list[bool]
    seconds: float
    keys: list[str] = field(default_factory=list)  # of the rows, see `Teacher.key`; without them it is not used again
    probabilities: list[list[float]] = field(default_factory=list)
    size: tuple[int, int] | None = None  # parameters and bytes of the teacher; a server says neither


@dataclass(frozen=True)
class Teacher:
    """The teacher of a recipe, opened when it is first asked."""

    prepared: TrainingContext
    offline: bool

    @property
    def label(self) -> str:
        """Return its name without a path."""
        name = self.prepared.recipe.teacher.model
        return name if is_server(name) else model_label(name)

    def answers(self, examples: Sequence[Example], file: Path) -> AnswerSet:
        """Return the answer to each row; those that are in the file are not asked for again."""
        rows = SERVER_ROWS if is_server(self.prepared.recipe.teacher.model) else LOCAL_ROWS
        keys = [self.key(example) for example in examples]
        finished = finished_calls(file, Call)
        known = {key for call in finished for key in call.keys}
        left = list({key: row for key, row in zip(keys, examples, strict=True) if key not in known}.items())
        calls = [left[start : start + rows] for start in range(0, len(left), rows)]
        for call in track(calls, f"{self.label} answers", unit="rows", size=len):
            finished.append(replace(self._call([row for _, row in call]), keys=[key for key, _ in call]))
            append_call(file, asdict(finished[-1]))
        places = {key: (call, i) for call in finished for i, key in enumerate(call.keys)}
        found = [places[key] for key in keys]
        labels = self.prepared.recipe.objective.known_labels
        return AnswerSet(
            [call.given[i] for call, i in found],
            f"teacher {self.label}",
            sum(call.seconds / len(call.given) for call, _ in found),
            [call.finished[i] for call, i in found],
            [
                dict(zip(labels, call.probabilities[i], strict=True))
                for call, i in found
                if len(call.probabilities) == len(call.given)
            ],
            size=next((call.size for call in finished if call.size), (None, None)),
        )

    def key(self, example: Example) -> str:
        """Return a digest of a row, of the teacher and of everything else that its answer depends on."""
        recipe = self.prepared.recipe
        objective, name = recipe.objective, self.label
        # The prompt of a base model depends on the validation rows.
        chosen_by = "" if is_server(name) else self.prepared.loaded.sha256.get("validation", "")
        said = objective.prompt_messages(example)
        parts = (name, chosen_by, objective.known_labels, objective.max_new_tokens, recipe.data.max_tokens, said)
        return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=12).hexdigest()

    def _call(self, examples: Sequence[Example]) -> Call:
        labels = self.prepared.recipe.objective.known_labels
        if isinstance(self.model, Remote):
            return self._request(self.model, examples)
        found = answer(self.model, examples)
        rows = [[row[label] for label in labels] for row in found.probabilities if set(row) == set(labels)]
        network = self.model.policy.network
        size = count_parameters(list(network.parameters())), resident_bytes(network)
        ended = found.finished or [True] * len(found.given)
        return Call(found.given, ended, found.seconds, probabilities=rows, size=size)

    def _request(self, server: Remote, examples: Sequence[Example]) -> Call:
        """Ask a server, which names a label in words."""
        objective = self.prepared.recipe.objective
        known = {_plain(label): label for label in objective.known_labels}
        sampling = Sampling(max_new_tokens=objective.max_new_tokens or max([16, *map(len, known)]))
        start = answer_clock()
        replies = server.replies([objective.prompt_messages(example) for example in examples], sampling=sampling)
        given = [known.get(_plain(reply.text), reply.text) for reply in replies]
        return Call(given, [reply.finished for reply in replies], answer_clock() - start)

    @cached_property
    def model(self) -> LocalModel | Remote:
        """The teacher; a base model with the prompt that is best on validation rows."""
        recipe, prepared = self.prepared.recipe, self.prepared
        name, objective = recipe.teacher.model, recipe.objective
        if is_server(name):
            url, _, served = name.partition("#")
            return Remote(url, served, os.environ.get("TUNESMITH_API_KEY", ""), self.offline).named()
        model = open_teacher(recipe, prepared.machine, offline=self.offline)
        if (produced := model.objective.produces) != objective.produces:
            raise RecipeError(
                f"teacher.model: {name} produces {produced}, not {objective.produces}; name another model"
            )
        if identify(name, offline=self.offline).kind == "model":
            split = prepared.loaded.split
            rows = subsample(split.validation or split.train, CHOICE_ROWS[objective.produces], seed=0)
            wordings = objective.prompt_templates("decoder")
            model.wording = best_wording(objective, wordings, lambda words: replace(model, wording=words), rows)
        return model

    def unload(self) -> None:
        """Free the memory of the model, which has answered everything before the student is trained."""
        self.__dict__.pop("model", None)


def _plain(text: str) -> str:
    """Return a label as a server may write it, without what it may put around it."""
    return folded(text).strip(" .:;!\"'`*") or folded(text)


def is_server(name: str) -> bool:
    """Return whether a teacher is a server."""
    return name.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Teaching:
    """A run with a teacher: what its answers to rows without answers became, and the run without these rows."""

    teacher: Teacher
    gold: TrainingContext
    asked: int = 0  # rows without answers
    kept: int = 0  # of these, trained on
    accuracy: float | None = None  # share of right labels on validation rows
    threshold: float | None = None  # confidence from which labels are kept; None: all valid ones are
    kept_accuracy: float | None = None  # share of right labels from thresholds on that other validation rows set
    checked: int = 0  # rows of this share
    unchecked: str = ""  # why there is no threshold

    @property
    def note(self) -> str:
        """Return what is trained on, for the report."""
        text = f"{self.kept} of {self.asked} rows without answers are trained on with answers of {self.teacher.label}"
        if self.accuracy is not None:
            text += f", which labels {self.accuracy:.1%} of the validation rows right"
        if self.threshold is not None and self.kept_accuracy is not None:
            low, high = wilson(self.kept_accuracy, self.checked)
            text += (
                f". Labels are kept from a confidence of {self.threshold:.2f} on; of {self.checked} validation rows "
                f"above a threshold that others set, {self.kept_accuracy:.1%} ({low:.1%} to {high:.1%}) are right"
            )
        if self.unchecked:
            text += f". All valid labels are kept: {self.unchecked}"
        return text


def with_teacher(
    prepared: TrainingContext, out: Path, *, on_event: EventHandler, offline: bool
) -> tuple[TrainingContext, Teaching | None]:
    """Add rows that the teacher of a recipe answers to the training rows; validation and test rows stay.

    Args:
        prepared: the run, of a single task.
        out: the run folder; keeps the answers.
        on_event: receives notes and progress.
        offline: do not access the network.

    Returns:
        The run with further training rows, and how they were made; None for a recipe without a teacher.

    Raises:
        DataError: the rows cannot be read, or a server fails; answers so far are kept.
        Refused: no answer passes the checks.
    """
    recipe, split = prepared.recipe, prepared.loaded.split
    if not recipe.teacher.model:
        return prepared, None
    if not is_server(recipe.teacher.model):
        held_out = [*split.validation, *prepared.test]
        seen = find_seen_rows(identify(recipe.teacher.model, offline=offline), held_out, offline=offline)
        prepared = _noted(prepared, seen, on_event)
    gold = replace(prepared, recipe=recipe.model_copy(update={"teacher": Section()}), teacher=None)
    teaching = Teaching(Teacher(prepared, offline), gold)
    if not recipe.teacher.rows:
        return prepared, teaching
    objective, wanted, count = recipe.objective, recipe.teacher.accuracy, len(split.validation)
    if objective.produces == "labels" and wanted != "auto" and count < FEWEST_CHECKED:
        raise RecipeError(f"teacher.accuracy: {wanted} cannot be kept, {few_rows(count)}; leave it out")
    rows = unanswered(prepared, offline=offline)
    checked = split.validation if objective.produces == "labels" else []
    on_event(StageStarted(f"{teaching.teacher.label} answers {len(rows)} rows without answers"))
    out.mkdir(parents=True, exist_ok=True)
    with phase("teacher answers", whole=True), alone():
        found = teaching.teacher.answers([*checked, *rows], out / FILE)
    teaching = replace(teaching, asked=len(rows))
    if objective.produces == "labels":
        kept, teaching = _kept_labels(found, checked, teaching)
    else:  # it ended, says something and does not repeat itself
        ended = zip(found.given, found.finished, strict=True)
        kept = {i: () for i, (text, end) in enumerate(ended) if end and text and not habits([text]).repeated_share}
    if not kept:
        raise Refused(f"teacher: none of its {len(rows)} answers passes the checks; use another teacher, or none")
    teaching = replace(teaching, kept=len(kept))
    answered = [objective.with_answer(rows[i], found.given[len(checked) + i]) for i in kept]
    _write_rows(out / ROWS_FILE, answered, [*kept.values()], teaching.teacher.label)
    prepared = _with_answers(prepared, answered, [*kept.values()])
    # As many steps on gold rows alone; both stop early by the same validation rows.
    steps, few = (-(-len(part) // recipe.schedule.batch_rows) for part in (prepared.train, gold.train))
    schedule = recipe.schedule.model_copy(update={"epochs": recipe.schedule.epochs * steps / few})
    gold = replace(gold, recipe=gold.recipe.model_copy(update={"schedule": schedule}))
    return _noted(prepared, [teaching.note], on_event), replace(teaching, gold=gold)


def _write_rows(path: Path, answered: Sequence[Example], probabilities: Sequence[Sequence[float]], label: str) -> None:
    """Write the rows that are trained on with answers of a teacher."""
    records = [
        {"where": row.where, "prompt": question(row), "answer": reference_answers([row])[0], "origin": TEACHER}
        | {"teacher": label, "probabilities": own}
        for row, own in zip(answered, probabilities, strict=True)
    ]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def _with_answers(
    prepared: TrainingContext, answered: Sequence[Example], probabilities: Sequence[Sequence[float]]
) -> TrainingContext:
    """Add answered rows to the training rows, with the probabilities of their labels as targets if these are soft."""
    recipe, objective, facts = prepared.recipe, prepared.recipe.objective, prepared.facts
    encoded = encode_all(objective, answered, prepared.template, limit=recipe.data.max_tokens)
    if recipe.teacher.labels == "soft" and objective.has_label_head:
        encoded = [replace(row, label=tuple(own) or row.label) for row, own in zip(encoded, probabilities, strict=True)]
    train = joined(prepared.train, encoded)
    learned = facts.learned_tokens + sum(tokens.learned for row in encoded for tokens in row.sequences)
    return replace(
        prepared,
        recipe=recipe.model_copy(update={"objective": objective.bind_encoded(train)}),
        train=train,
        answered=answered,
        facts=replace(facts, learned_tokens=learned),
    )


def _noted(prepared: TrainingContext, notes: Sequence[str], on_event: EventHandler) -> TrainingContext:
    for note in notes:
        on_event(Note(note))
    return prepared.noted(*notes)


def unanswered(prepared: TrainingContext, *, offline: bool) -> list[Example]:
    """Read the rows of `teacher.rows`, without copies of each other and of the rows of the run, and of their groups.

    Raises:
        DataError: they cannot be read.
    """
    recipe, objective, split = prepared.recipe, prepared.recipe.objective, prepared.loaded.split
    rows = read_rows(recipe.teacher.rows, offline=offline)
    group = recipe.data.group if recipe.data.group in columns_of(rows) else ""
    reader = Reader(objective, group)
    train, where = recipe.data.train, recipe.data.where
    large = large_file(train)
    gold = islice(RowStream(train, where), FIRST_ROWS) if large else keep(read_rows(train, offline=offline), where)
    reader.start(list(gold))
    rows = _answerable(rows, reader.columns, next(iter(objective.known_labels), "answer"))
    parse = reader.start(rows, whole=False)
    examples = [objective.without_answer(example) for example in parse(rows)]
    held_out = [*split.validation, *split.test]
    groups = {example.group for example in held_out if example.group}
    known = {prompt_key(example) for example in [*split.train, *held_out]}
    new: dict[str, Example] = {}
    for example in examples:
        # In a small file, the key of its context is the group of a row.
        own = {example.group, text_key(example.group)}
        if (key := prompt_key(example)) not in known and not own & groups:
            new.setdefault(key, example)
    ours, theirs = ([Text(e.where, _whole_prompt(e, objective)) for e in part] for part in (new.values(), held_out))
    copies = near_copies(ours, theirs, RULE if objective.produces == "labels" else PROMPT_RULE)
    if len(copies) == len(new):
        raise DataError(f"{recipe.teacher.rows}: every row is a copy of a row of the run; give a file with other rows")
    return [example for index, example in enumerate(new.values()) if index not in copies]


def _whole_prompt(example: Example, objective: AnyObjective) -> str:
    """Return what a row asks, without what all rows have in common."""
    if not isinstance(example, Chat):
        return question(example)
    turns = [message.said for message in objective.prompt_messages(example) if message.role != "system"]
    return "\n".join(turns).removeprefix(objective.instruction)


def _answerable(rows: Sequence[Row], columns: Mapping[str, str], answer: str) -> list[Row]:
    """Return rows with an `answer` in the `columns` of the rows of the run, whose parser then reads them alike."""
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")
    prompt = columns.get("prompt", dialogue)
    source = prompt if has_column(rows, prompt) else prompt and prompt_column(rows)
    choices = columns.get("choices", "")
    made = []
    for row in rows:
        fields = dict(row.fields)
        if source and not is_nothing(value := cell(row, source)):
            turns = list(turns_in(value, row.where))
            while turns and turn_of(turns[-1], row.where).role == "assistant":
                turns.pop()
            if dialogue:
                turns = turns or [{"role": "user", "content": value}]
                fields[dialogue] = [*turns, {"role": "assistant", "content": answer}]
            else:
                fields[prompt] = turns or value
        for role in {"answer", "label"} & set(columns):
            given = next(iter(choices_of(row, choices)), answer) if choices and has_column([row], choices) else answer
            fields[columns[role]] = given
        made.append(Row(row.where, fields))
    return made


def _kept_labels(
    found: AnswerSet, checked: Sequence[Example], teaching: Teaching
) -> tuple[dict[int, tuple[float, ...]], Teaching]:
    """Return the indices of rows whose labels are kept, with calibrated probabilities if the teacher states any.

    The first answers are those to the validation rows `checked`, the others those to the rows.
    """
    recipe, count = teaching.teacher.prepared.recipe, len(checked)
    labels, references = recipe.objective.known_labels, reference_answers(checked)
    right = np.array([a == b for a, b in zip(found.given, references, strict=False)])
    accuracy = float(right.mean()) if count else None
    teaching = replace(teaching, accuracy=accuracy)
    stated = len(found.probabilities) == len(found.given)
    if not stated or count < FEWEST_CHECKED:
        why = few_rows(count) if stated else "it does not state the probabilities of all labels"
        if recipe.teacher.accuracy != "auto":
            raise RecipeError(f"teacher.accuracy: {recipe.teacher.accuracy} cannot be kept, {why}; leave it out")
        valid = [count + i for i, label in enumerate(found.given[count:]) if label in labels]
        own = {i - count: tuple(found.probabilities[i][label] for label in labels) if stated else () for i in valid}
        return own, replace(teaching, unchecked=why)
    logits = np.log(np.maximum([[row[label] for label in labels] for row in found.probabilities], 1e-300))
    truth = np.array([labels.index(reference) for reference in references])
    target = (1 + float(right.mean())) / 2 if recipe.teacher.accuracy == "auto" else recipe.teacher.accuracy

    def confident(by: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
        """Return probabilities [N, K] and the threshold that some validation rows choose; above 1 if none does."""
        temperature = calibration.fit_temperature(logits[by], truth[by])
        table = calibration.softmax(logits, temperature=temperature)
        sure = table[by].max(axis=1)
        return table, calibration.threshold_for(sure, right[by], target, fewest=FEWEST_ABOVE) or 2.0

    # The accuracy is that of rows which did not choose the threshold: each half is checked by that of the other.
    order = np.random.default_rng(0).permutation(count)
    above = list[np.bool_]()
    for checked_by, half in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        table, threshold = confident(checked_by)
        above += right[half][table[half].max(axis=1) >= threshold].tolist()
    table, threshold = confident(order)
    reached = float(np.mean(above)) if above else 0.0
    if threshold > 1 or not above or wilson(reached, len(above))[1] < target:
        raise Refused(
            f"teacher: at no confidence are {target:.0%} of its labels of {count} validation rows right, "
            f"{accuracy:.0%} of all are; lower teacher.accuracy, or use another teacher"
        )
    kept = {int(i): tuple(table[count + i].tolist()) for i in np.flatnonzero(table[count:].max(axis=1) >= threshold)}
    return kept, replace(teaching, threshold=threshold, kept_accuracy=reached, checked=len(above))


def few_rows(count: int) -> str:
    """Return why `count` validation rows choose no threshold."""
    return f"{count} validation rows are too few to choose a confidence by, which takes {FEWEST_CHECKED}"
