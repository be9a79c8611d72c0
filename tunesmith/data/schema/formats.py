"""Detect the format of rows from their columns: the objective they serve and the role of each column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.accepted import lists_answers
from tunesmith.data.schema.ambiguous import BOTH_READ, nameless, read_together, rivals, unjudged
from tunesmith.data.schema.cells import PLUS, flag_of
from tunesmith.data.schema.choices import choice_columns, names_a_choice
from tunesmith.data.schema.columns import ENOUGH, LOOKED_AT, columns_held, ignored_columns, left_over
from tunesmith.data.schema.guess import LABEL_WORDS, QUANTITY_WORDS, Guess, alternatives, guess, has_label, unguessed
from tunesmith.data.schema.values import (
    are_shares,
    are_turns,
    has_letters,
    is_answer,
    is_blank,
    is_dialogue,
    is_label,
    is_number,
    is_open,
    is_scale,
    is_spans,
    is_tag,
    is_text,
    is_thumb,
    label_items,
    label_separator,
    lacks_number,
    listed,
    may_be_text,
)
from tunesmith.data.schema.winner import side
from tunesmith.data.text.language import language_of_name, language_of_texts
from tunesmith.data.tokenization.thinking import FIELDS, MODES
from tunesmith.errors import DataError, UnsettledError

# From FEW values on, a column whose values are mostly distinct (above CLASSES) holds names or sentences, not labels.
FEW = 20
CLASSES = 0.8
TARGETS = 0.5  # of a column named `target`, which may hold sentences

DIALOGUES = ("messages", "conversations", "conversation", "dialogue")
SYSTEMS = ("system", "system_prompt")
INPUTS = ("input", "context", "passage")
TOOLS = ("tools", "functions")
ASKED = ("prompt", "question", "instruction", "query", "input")
THOUGHTS = (*FIELDS, "thoughts")
SIDES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))  # the latter of OpenAI
THUMBS = ("label", "feedback", "thumb", "thumbs", "vote", "rating", "kto_tag", "desirable", "liked")
ANSWERS = ("output", "response", "completion", "answer")
PAIRS = (
    *(("prompt", answer) for answer in ("completion", "response", "answer")),
    ("question", "answer"),
    ("question", "response"),
    ("prompt", "output"),
    ("input", "output"),
    ("source", "target"),
    ("document", "summary"),
    *((prompt, "answers") for prompt in ("question", "prompt", "query")),
    *((prompt, answer) for prompt in ("question", "prompt") for answer in ("references", "outputs", "targets")),
    *(("query", answer) for answer in ("response", "answer", "reply")),
    *((prompt, answer) for prompt in ("input", "inputs") for answer in ("target", "targets", "outputs")),
    *((text, "summary") for text in ("source", "article", "dialogue", "text")),
    ("article", "highlights"),
    ("problem", "solution"),
    ("src", "tgt"),
)
# Columns of a query, of a passage that answers it, and of passages that do not.
QUERIES = ("query", "anchor", "question")
POSITIVES = ("positive", "positive_passage", "pos", "passage")
NEGATIVES = ("negative", "negative_passage", "neg", "negatives", "hard_negatives", "negative_passages")
# Columns that are 1 for a passage that answers the query and 0 for another one, and further ones of the passage then.
RELEVANCE = ("relevance", "relevant", "is_relevant")
CANDIDATES = (*POSITIVES, "document", "doc", "candidate")
# Columns of answers whose passage is put before the question, as in SQuAD.
PASSAGES = ("context", "passage")
CHOICES = ("choices", "options", "endings")
KEYS = (
    "answer", "answerkey", "answer_key", "answer_idx", "label", "target", "gold", "key", "correct", "correct_answer",
)  # fmt: skip
WINNERS = ("winner", "preference", "preferred", "better", "choice", "label", "winner_model")
TRANSLATED = ("target", "tgt", "translation", "translated", "output")
# Pairs of prompt and answer that may be translations without a named language.
TRANSLATION_PAIRS = {("source", "target"), ("src", "tgt")}
DOCUMENTS = ("text", "content")
TEXTS = ("text", "sentence", "review", "content", "body", "comment", "message", "tweet", "title", "headline")
# Ends of the name of a column with the words of numeric labels: `label_text`.
TWIN_ENDS = ("_text", "_name", "_str", "_names")
LABELS = ("label", "labels", "category", "class", "sentiment", "stance", "target", "intent", "topic", "tags")

# Columns of spans, of words, and of the tags of words.
SPANS = ("spans", "ents", "entities", "annotations", "label", "labels")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "bio_tags", "bio", "ner", "labels")

# Names of quantities. A column with such a name may be a scale of integers, one named like a label may not.
QUANTITIES = ("score", "rating", "target", "value", "grade", "points", "price", "mean", "amount")

EXPLICIT = (
    "{kind: classify, text: COLUMN, label: COLUMN}",
    "{kind: regress, text: COLUMN, target: COLUMN}",
    "{kind: tag, text: COLUMN, spans: COLUMN}",
    "{kind: instruct, prompt: COLUMN, answer: COLUMN}",
    "{kind: preference, prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}",
    "{kind: domain, text: COLUMN}",
    "{kind: embed, query: COLUMN, passage: COLUMN}",
)
PARTS = {
    "system": "system turn",
    "context": "passage before the question",
    "choices": "choices",
    "winner": "better answer",
    "prompt": "user turn",
    "input": "user turn",
    "history": "earlier turns",
    "answer": "assistant turn",
    "messages": "turns by role and content",
    "conversations": "turns by from and value",
    "tools": "available tools",
    "thoughts": "thoughts before the answer",
    "chosen": "preferred answer",
    "rejected": "other answer",
    "margin": "preference margin",
    "text": "input text",
    "label": "target",
    "target": "number to predict",
    "spans": "labelled spans",
    "words": "words of the text",
    "tags": "tag of each word",
    "query": "query",
    "passage": "passage that answers it",
    "negative": "passage that does not",
    "relevance": "1 if the passage answers it",
    "score": "similarity",
    "evidence": "words of the answer",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A known row format."""

    name: str  # name of the format
    objective: str  # kind of the objective that it serves
    columns: Mapping[str, str]  # role -> column of the file
    settings: Mapping[str, str] = field(default_factory=dict)  # settings of the objective that suit the format
    ignored: Mapping[str, str] = field(default_factory=dict)  # column that is not used -> reason

    def explain(self) -> str:
        """Return the mapping in one line, for the user to check."""
        by_role: dict[str, list[str]] = {}
        for part, column in self.columns.items():
            name = PARTS[part]
            if "winner" in self.columns and part in ("chosen", "rejected"):
                name = "compared answers"
            elif part == "passage" and "relevance" in self.columns:
                name = "passage"
            by_role.setdefault(name, []).append(column)
        mapping = (f"{'+'.join(columns)} -> {role}" for role, columns in by_role.items())
        return f"detected {self.name}: {', '.join(mapping)}{ignored_columns(self.ignored)}"


def detect(rows: Sequence[Row], *, learned: bool = True) -> Format:
    """Detect the most specific format that at least 90 % of the first 200 rows have.

    Unless the answers are to be `learned`, columns that rate them are ignored.

    Raises:
        DataError: if no format matches; the message has the fix.
        UnsettledError: if the format is known but it is unclear which answers to train on.
    """
    sample = _Sample(rows[:LOOKED_AT])
    match = next(filter(None, (detector(sample) for detector in DETECTORS)), None)
    if match is not None:
        match = replace(match, ignored=left_over(rows, [*match.columns.values(), *sample.modes()]))
        judged = match.objective == "instruct" and "choices" not in match.columns
        if learned and judged and (problem := unjudged(rows, read=match.columns.values())):
            raise UnsettledError(problem)
        return match
    if guessed := guess(rows) or _partly_labelled(rows):
        if guessed.lacking:
            fix = f"to skip them, confirm with {guessed.change()}"
            fix += ", or label them with `tunesmith label`" if "label" in guessed.columns else ""
            raise DataError(f"{file_of(rows)}: {guessed.lacking}; {fix}")
        fix = f"run `tunesmith init` to write a recipe with a guess, or confirm it with {guessed.change()}"
    elif problem := unguessed(rows) or nameless(rows):
        raise DataError(problem)
    else:
        fix = alternatives(rows) or "write the columns in the recipe, as objective: " + " or ".join(EXPLICIT)
    raise DataError(f"{file_of(rows)}: no known format has the columns {columns_of(rows)}{_odd(sample)}; {fix}")


def detect_or_guess(rows: Sequence[Row]) -> Format | Guess:
    """Detect the format, or guess the roles of columns whose names are unknown; raise an error as `detect` does."""
    try:
        return detect(rows)
    except UnsettledError:
        raise
    except DataError:
        if (guessed := guess(rows) or _partly_labelled(rows)) is None:
            raise
        return guessed


def by_word(rows: Sequence[Row]) -> dict[str, str]:
    """Map lower-case names to columns; of `Text` and `text` the exact one is used.

    A value inside an object is also found by its last name, `text` of `review.text`, if no other column has it.
    """
    columns = [name for name in columns_of(rows) if name.strip()]
    exact = {name: name for name in columns if name == name.strip().lower()}
    last = Counter(name.rpartition(".")[2].strip().lower() for name in columns)
    inner = {
        word: name for name in columns if "." in name and last[word := name.rpartition(".")[2].strip().lower()] == 1
    }
    return inner | {name.strip().lower(): name for name in columns} | exact


class _Sample:
    """The first rows, with columns accessed by lower-case name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.names = by_word(rows)

    def present(self, names: Sequence[str]) -> list[str]:
        """Return the columns of these names that the rows have, in this order."""
        return [self.names[name] for name in names if name in self.names]

    def first(self, names: Sequence[str]) -> str:
        """Return the first of these columns; empty if the rows have none."""
        return next(iter(self.present(names)), "")

    def column(self, names: Sequence[str], holds: Callable[[object], bool]) -> str | None:
        """Return the first of these columns in which at least 90 % of the values satisfy the predicate."""
        return next((column for column in self.present(names) if self.share(column, holds) >= ENOUGH), None)

    def chat(self, holds: Callable[[object], bool]) -> str | None:
        """Return the only column of any name that contains whole chats."""
        chats = [column for column in self.names.values() if self.share(column, holds) >= ENOUGH]
        return chats[0] if len(chats) == 1 and not self.share(chats[0], is_open) else None

    def lists(self, names: Sequence[str]) -> str | None:
        """Return the first of these columns that contains lists of accepted answers."""
        return next((column for column in self.present(names) if lists_answers(self.rows, column)), None)

    def answers(self, names: Sequence[str]) -> str | None:
        """Return the first of these columns with answers, or with lists of accepted answers."""
        return self.column(names, is_answer) or self.lists(names)

    def share(self, column: str, holds: Callable[[object], bool]) -> float:
        """Return the share of rows whose value in this column satisfies the predicate."""
        return sum(holds(value) for value in self.values(column)) / max(1, len(self.rows))

    def values(self, column: str) -> Iterator[object]:
        """Return the values of a column; None where a row has none."""
        return (row.fields.get(column) for row in self.rows)

    def repeats(self, column: str) -> bool:
        """Return whether values, or items of lists, occur repeatedly; names and sentences do not."""
        separator = label_separator(self.rows, column)
        values = ([value] if not separator else str(value).split(separator) for value in self.values(column) if value)
        items = [str(item).strip() for cells in values for value in cells for item in label_items(value)]
        most = TARGETS if column.strip().lower() == "target" else CLASSES
        return len(items) < FEW or len(set(items)) <= most * len(items)

    def tagged(self, names: Sequence[str]) -> str | None:
        """Return the first of these columns whose texts are several labels with a separator."""
        return next((column for column in self.present(names) if label_separator(self.rows, column)), None)

    def pairs(self, first: str, second: str) -> set[tuple[str, str]]:
        """Return the distinct pairs of values of two columns."""
        return set(zip(map(str, self.values(first)), map(str, self.values(second)), strict=True))

    def same(self, first: str, second: str) -> bool:
        """Return whether each value of one column occurs with exactly one value of the other."""
        pairs = self.pairs(first, second)
        return len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs})

    def settles(self, answer: str, label: str) -> bool:
        """Return whether a few answers repeat, each always with the same label: then the label is not a rating."""
        pairs = self.pairs(answer, label)
        answers = {text for text, _ in pairs}
        return len(pairs) == len(answers) and 2 <= len(answers) <= len(self.rows) / FEW

    def about(self, *taken: str) -> str | None:
        """Return the context column of a prompt: texts, or lists and objects, which the parser reports."""
        used = [f"{column}." for column in taken]  # also an object, if one of its values is used
        names = [name for name in INPUTS if not any(each.startswith(f"{self.names.get(name)}.") for each in used)]
        return self.column(names, may_be_text) or next(
            (c for c in self.present(names) if any(isinstance(v, list | dict) and v for v in self.values(c))), None
        )

    def history(self) -> dict[str, str]:
        """Return the column of earlier turns if it has lists; the parser rejects lists that are not exchanges."""
        column = self.names.get("history")
        return {"history": column} if column and any(map(listed, self.values(column))) else {}

    def modes(self) -> list[str]:
        """Return the column whose values say what happens to the thoughts of each row, if there is one."""
        return [name for name in ("thinking",) if self.share(name, lambda value: value in MODES)]

    def thoughts(self) -> dict[str, str]:
        """Return the column with the thoughts before the answer, if there is one; it may be blank in any row."""
        found = (column for column in self.present(THOUGHTS) if column not in self.modes())
        column = next((c for c in found if self.share(c, is_text) and self.share(c, may_be_text) >= ENOUGH), "")
        return {"thoughts": column} if column else {}

    def passage(self) -> dict[str, str]:
        """Return the column of a passage that is put before the question, if there is one."""
        passage = self.column(PASSAGES, may_be_text)
        return {"context": passage} if passage else {}

    def optional(self, **parts: Sequence[str]) -> dict[str, str]:
        """Return columns that may be blank in most rows: the name alone decides."""
        return {part: column for part, names in parts.items() if (column := self.first(names))}


def _odd(sample: _Sample) -> str:
    """Describe the first value that prevents columns with known names from being used; empty if there is none."""
    for names, holds, kind in (
        (DIALOGUES, is_dialogue, "list of turns"),
        (TEXTS, is_text, "text"),
        (LABELS, is_label, "label"),
        (ANSWERS, is_answer, "text"),
    ):
        for column in sample.present(names):
            for row in sample.rows:
                if not holds(row.fields.get(column)):
                    value = row.fields.get(column)
                    number = is_number(value) and not isinstance(value, str)
                    fix = " (write the number as text)" if number else ""
                    return f", and {row.where} does not have a {kind} in {column!r}: {str(value)[:40]}{fix}"
    return ""


def _partly_labelled(rows: Sequence[Row]) -> Guess | None:
    """Guess the columns by those rows that have a label or a number, if more than a tenth of the rows lack it."""
    for column in columns_held(rows):
        if not column.called & {*LABELS, *LABEL_WORDS, *QUANTITIES, *QUANTITY_WORDS}:
            continue
        for role, kind, lacks in (("target", "number", lacks_number), ("label", "label", is_blank)):
            rest = [row for row in rows if not lacks(row.fields.get(column.name))]
            if not 0 < len(rest) < ENOUGH * len(rows):
                continue
            sample = _Sample(rest[:LOOKED_AT])
            found = _text_number(sample) or _text_label(sample) or _text_pair(sample) or guess(rest)
            if found and "text" in found.columns and found.columns.get(role) == column.name:
                lacking = f"{len(rows) - len(rest)} of {len(rows)} rows have no {kind} in {column.name!r}"
                ignored = left_over(rows, found.columns.values())
                return Guess(found.objective, dict(found.columns), ignored=ignored, lacking=lacking)
    return None


def _preference(sample: _Sample) -> Format | None:
    sides = next((found for names in SIDES if len(found := sample.present(names)) == len(names)), None)
    if sides is None:
        return None
    for column in sides:
        if sample.share(column, is_answer) < ENOUGH:
            row = next(row for row in sample.rows if not is_answer(row.fields.get(column)))
            problem = f"expected an answer in {column!r}, got {str(row.fields.get(column))[:40]!r}"
            raise UnsettledError(f"{row.where}: {problem}; write chosen and rejected as texts or as turns in every row")
    columns = {"chosen": sides[0], "rejected": sides[1], **sample.optional(system=SYSTEMS, margin=["margin"])}
    # Without a prompt column, the prompt is the common beginning of both answers.
    return Format("preference", "preference", {**_asked(sample), **columns})


def _asked(sample: _Sample) -> dict[str, str]:
    """Return the prompt columns of preference rows, as far as there are any; a chat must end with a user turn."""
    prompt = sample.column(ASKED, is_answer) or sample.column(DIALOGUES, is_open)
    if prompt is None:
        return {}
    context = {"input": about} if (about := sample.about(prompt)) else {}
    return {"prompt": prompt, **context, **sample.history()}


def _thumbs(sample: _Sample) -> Format | None:
    label = sample.column(THUMBS, is_thumb)
    if label is None:
        return None
    prompt = _asked(sample)
    answer = sample.column(ANSWERS, is_answer)
    chat = sample.column(DIALOGUES, is_dialogue)
    if prompt and answer and not sample.settles(answer, label):
        columns = {**prompt, "answer": answer}
    elif chat and not answer:
        columns = {"messages" if sample.column([chat.strip().lower()], are_turns) else "conversations": chat}
    else:
        return None
    return Format("thumbs", "preference", {**sample.optional(system=SYSTEMS), **columns, "label": label})


def _chats(sample: _Sample) -> Format | None:
    """Detect whole chats: turns by role and content, or by from and value."""
    for name, part, holds in (("messages", "messages", are_turns), ("sharegpt", "conversations", are_shares)):
        if column := sample.column(DIALOGUES, holds) or sample.chat(holds):
            extra = sample.optional(system=SYSTEMS, tools=TOOLS)
            return Format(name, "instruct", {part: column, **extra})
    return None


def _alpaca(sample: _Sample) -> Format | None:
    prompt, answer = sample.column(["instruction"], is_text), sample.column(ANSWERS, is_text)
    if prompt is None or answer is None:
        return None
    extra = sample.optional(input=INPUTS, system=SYSTEMS, tools=TOOLS)
    extra |= {**sample.history(), **sample.thoughts()}
    return Format("alpaca", "instruct", {"prompt": prompt, **extra, "answer": answer})


def _prompt_completion(sample: _Sample) -> Format | None:
    for prompt_name, answer_name in PAIRS:
        prompt, answer = sample.column([prompt_name], is_answer), sample.answers([answer_name])
        if prompt is None or answer is None:
            continue
        extra = sample.optional(system=SYSTEMS, tools=TOOLS) | sample.history() | sample.thoughts()
        if sample.lists([answer_name]):
            parts = {**sample.passage(), **extra, "prompt": prompt, "answer": answer}
            return Format("question_answers", "instruct", parts)
        if (prompt_name, answer_name) in TRANSLATION_PAIRS and (translated := _from_texts(sample, prompt, answer)):
            return translated
        context = {"input": about} if (about := sample.about(prompt, answer)) else {}
        return Format("prompt_completion", "instruct", {**extra, "prompt": prompt, **context, "answer": answer})
    return None


def _translation(sample: _Sample) -> Format | None:
    """Detect two columns named after languages, or one such column and one named like a translation."""
    texts = {
        column: language
        for name in sample.names
        if (language := language_of_name(name)) and (column := sample.column([name], has_letters))
    }
    first, *others = texts or [""]
    if len(texts) == 2:
        return _translated(first, others[0], texts[others[0]])
    answer = sample.column(TRANSLATED, has_letters)
    labels = {column.name for column in columns_held(sample.rows) if column.few}
    if len(texts) != 1 or answer is None or answer in labels:
        return None
    return _translated(first, answer, language_of_texts([str(value) for value in sample.values(answer) if value]))


def _from_texts(sample: _Sample, prompt: str, answer: str) -> Format | None:
    """Detect a translation by the languages of the texts in two columns."""
    first, second = (
        language_of_texts([str(value) for value in sample.values(column) if value]) for column in (prompt, answer)
    )
    return _translated(prompt, answer, second) if first and second and first != second else None


def _translated(prompt: str, answer: str, language: str) -> Format:
    into = f"Translate into {language}:" if language else "Translate:"
    settings = {"instruction": into, "metric": "chrf"}
    return Format("translation", "instruct", {"prompt": prompt, "answer": answer}, settings)


def _choices(sample: _Sample) -> Format | None:
    """Detect a question with choices, in one column or one each, and the key of the right one."""
    prompt = sample.column((*ASKED, "sentence", "ctx", "stem"), is_text)
    columns = sample.first(CHOICES) or PLUS.join(choice_columns(list(sample.names.values())))
    answer = sample.first(KEYS)
    if not (prompt and columns and answer) or answer in columns.split(PLUS) or prompt in columns.split(PLUS):
        return None
    named = [row for row in sample.rows if names_a_choice(row, columns, answer)]
    if len(named) < ENOUGH * len(sample.rows):
        return None
    parts = {**sample.passage(), **sample.thoughts(), "prompt": prompt, "choices": columns, "answer": answer}
    return Format("multiple_choice", "instruct", parts, {"metric": "exact_match"})


def _compared(sample: _Sample) -> Format | None:
    """Detect two answers whose names differ by a letter or number, and a column that names the better one."""
    columns = columns_held(sample.rows)
    first, second = rivals(columns)
    winner = sample.first(WINNERS)
    if not (first and second and winner) or any(sample.share(c, is_answer) < ENOUGH for c in (first, second)):
        return None
    values = [value for value in sample.values(winner) if value not in (None, "")]
    sides = [side(value, first, second) for value in values]
    if not {"first", "second"} <= set(sides) or sides.count("") > (1 - ENOUGH) * len(sides):
        return None
    asked = {part: column for part, column in _asked(sample).items() if column not in (first, second)}
    return Format("compared", "preference", {**asked, "chosen": first, "rejected": second, "winner": winner})


def _spans(sample: _Sample) -> Format | None:
    """Detect a text with labelled spans, or words with BIO tags."""
    columns = span_columns(sample.rows)
    return Format("word_tags" if "words" in columns else "spans", "tag", columns) if columns else None


def span_columns(
    rows: Sequence[Row], *, text: str = "", spans: str = "", words: str = "", tags: str = ""
) -> dict[str, str]:
    """Return the columns of a text and its spans, or of words and their tags; empty if they cannot be detected.

    Named columns are taken as they are, and only the other one of the pair is looked for.

    Args:
        rows: rows of one file.
        text: column of the text, if it is named.
        spans: of its spans.
        words: of the words.
        tags: of their tags.
    """
    sample = _Sample(rows[:LOOKED_AT])
    if not (words or tags):
        found = spans or sample.column(SPANS, is_spans)
        # A task of Label Studio may have a title as well, and repeats parts of the text in its results.
        names = ("data.text", *TEXTS) if found == "annotations" else (*TEXTS, "data.text")
        text_column = text or sample.column(names, is_text)
        if text_column and found and (spans or any(map(listed, sample.values(found)))):
            return {"text": text_column, "spans": found}
    if text or spans:
        return {}
    cut = words or sample.column(WORDS, lambda value: any(map(is_text, listed(value))))
    bio = tags or sample.column(TAGS, lambda value: bool(listed(value)) and all(map(is_tag, listed(value))))
    return {"words": cut, "tags": bio} if cut and bio else {}


def _query_passage(sample: _Sample) -> Format | None:
    """Detect a query and a passage that answers it, without a written answer to learn, or with its relevance."""
    query = sample.column(QUERIES, is_text)
    if query is None or sample.first((*ANSWERS, "answers")):
        return None
    graded = _relevance(sample, query)
    passage = sample.column(CANDIDATES if graded else POSITIVES, is_text)
    if passage is None or (not graded and sample.first(LABELS)):
        return None
    return Format(
        "query_passage", "embed", {"query": query, "passage": passage, **sample.optional(negative=NEGATIVES), **graded}
    )


def _relevance(sample: _Sample, query: str) -> dict[str, str]:
    """Return the column that says whether a passage answers the query, if there is one.

    A label of 0 or 1 next to a `question` may as well be its answer, yes or no, unless questions have several passages.
    """
    column = sample.column(RELEVANCE, lambda value: flag_of(value) is not None)
    asked = list(sample.values(query))
    if not column and (query.lower() != "question" or len(set(map(str, asked))) <= len(asked) / 2):
        label = sample.column(("label", "labels"), lambda value: flag_of(value) is not None)
        column = label if label and {True, False} <= {flag_of(value) for value in sample.values(label)} else None
    return {"relevance": column} if column else {}


def _text_number(sample: _Sample) -> Format | None:
    """Detect a text, or two that are read together, with a number on a scale."""
    numbers = ((name, sample.column([name], is_number)) for name in (*QUANTITIES, *LABELS))
    scales = (c for name, c in numbers if c and is_scale([*sample.values(c)], counted=name in QUANTITIES))
    target = next(scales, None)
    pair = read_together(columns_held(sample.rows))
    text = PLUS.join(pair) if pair and target not in pair else sample.column(TEXTS, is_text)
    if target is None or text is None:
        return None
    return Format("text_number", "regress", {"text": text, "target": target})


def _text_pair(sample: _Sample) -> Format | None:
    """Detect two texts with a label about their relation."""
    pair = read_together(columns_held(sample.rows))
    label = _label(sample)
    if not pair or label is None or label in pair:
        return None
    return Format("text_pair", "classify", {"text": PLUS.join(pair), "label": label})


def _text_label(sample: _Sample) -> Format | None:
    text = sample.column(TEXTS, is_text)
    label = _label(sample)
    if text is None or label is None or any(text.lower() in pair <= sample.names.keys() for pair in BOTH_READ):
        return None
    return Format("text_label", "classify", {"text": text, "label": label})


def _label(sample: _Sample) -> str | None:
    """Return the label column; of a label and a column with its name in words, the words."""
    candidates = ((name, sample.column([name], is_label) or sample.tagged([name])) for name in LABELS)
    name = next((name for name, column in candidates if column and sample.repeats(column)), None)
    if name is None:
        return None
    label = sample.names[name]
    twins = sample.present([f"{name}{end}" for end in TWIN_ENDS])
    return next((twin for twin in twins if sample.share(twin, is_label) >= ENOUGH and sample.same(label, twin)), label)


def _text(sample: _Sample) -> Format | None:
    text = sample.column(DOCUMENTS, is_text)
    # With a column named like a label or an answer, training on the text alone would be a guess.
    other = sample.optional(other=[*LABELS, *ANSWERS, "prompt", "question", "summary"]) or has_label(sample.rows)
    return None if text is None or other or _partly_labelled(sample.rows) else Format("text", "domain", {"text": text})


DETECTORS: tuple[Callable[[_Sample], Format | None], ...] = (
    _preference,
    _compared,
    _thumbs,
    _query_passage,
    _chats,
    _spans,
    _choices,
    _alpaca,
    _prompt_completion,
    _translation,
    _text_number,
    _text_label,
    _text_pair,
    _text,
)
