"""Detect rows whose columns are ambiguous, and say how to fix them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from tunesmith.data.files import quoted
from tunesmith.data.readers.json_rows import index_of
from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.columns import NOTED, Column, columns_held, named
from tunesmith.data.schema.values import thumb_of

# Words in column names of prompts, answers and ratings of answers.
PROMPT_WORDS = (
    "prompt", "question", "query", "request", "ask", "q", "instruction", "problem", "user", "customer", "issue",
)  # fmt: skip
ANSWER_WORDS = (
    "answer", "answers", "reply", "response", "solution", "a", "output", "resolution", "agent", "assistant", "summary",
)  # fmt: skip
MARKS = ("rating", "score", "stars", "helpfulness", "quality", "vote", "grade")
THUMB_WORDS = ("label", "feedback", "thumb", "thumbs", "vote", "rating", "kto", "desirable", "liked")
# Names of two compared answers and of the column with the winner, as in the Arena, SHP and WebGPT datasets.
RIVALS = (*ANSWER_WORDS, "completion", "conversation", "chat", "ref")
COMPARED = {*RIVALS} - {"a"}  # two of them are answers to compare, not inputs to read together
NAMES_WINNER = {"winner", "preferred", "preference"}
WON = {*NAMES_WINNER, "score", "labels"}
CHOICES = {"choices", "options", "endings"}
LONGEST_CHOICE = 2  # characters of a key: a letter or a number
WHICH = {*ANSWER_WORDS, "label", "target", "gold", "key"}
BOTH_READ = (
    {"premise", "hypothesis"},
    {"question", "passage"},
    {"question", "context"},
    {"question", "sentence"},
)
FEWEST_ASKED = 3  # median words of a prompt column; names have two
FEWEST_IN_SENTENCE = 4


def unclear(rows: Sequence[Row]) -> str:
    """Return why the columns are ambiguous and the fix; empty if they are not."""
    columns = columns_held(rows)
    problem = (
        _by_column(rows)
        or _header(columns)
        or _nested(columns)
        or _letters(columns)
        or _rivals(columns)
        or _together(columns)
    )
    return f"{file_of(rows)}: {problem}" if problem else ""


def unjudged(rows: Sequence[Row], *, read: Collection[str]) -> str:
    """Return why the answers in the columns `read` should not all be trained on, and the fix; empty if they should.

    Reasons: an answer is only a key of a choice, or another column rates the answers.
    """
    columns = columns_held(rows)
    if problem := _letters(columns):
        return f"{file_of(rows)}: {problem}"
    others = [column for column in columns if column.name not in read]
    for column in others:
        numeric = all(word.replace(".", "", 1).isdigit() for word in column.distinct)
        if column.few and column.called and column.called <= set(MARKS) and numeric:
            fix = (
                f"set the columns in the recipe, and select the good answers with data.where: {{{column.name}: [...]}}"
            )
            return f"{file_of(rows)}: {column.name} rates the answers, so not all should be trained on; {fix}"
    for column in others:
        if _rates(column, rows):
            fix = (
                f"rename it to `label` and fill every row to learn from both ratings, select the good answers with "
                f"data.where: {{{column.name}: [...]}}, or remove it if it has another meaning"
            )
            return f"{file_of(rows)}: {column.name} may rate the answers, so not all should be trained on; {fix}"
    return ""


def _rates(column: Column, rows: Sequence[Row]) -> bool:
    """Return whether a column has ratings, possibly not in every row: of both kinds, or named like a rating."""
    if not column.thumbs or column.called & NOTED:
        return False
    ratings = {thumb_of(row.fields.get(column.name)) for row in rows}
    return bool(column.called & set(THUMB_WORDS)) or ratings >= {True, False}


def asked(columns: Sequence[Column]) -> Column | None:
    """Return the prompt column by its name: texts of several words with many distinct values."""
    texts = [column for column in columns if column.text and not column.few and column.words >= FEWEST_ASKED]
    return named(texts, PROMPT_WORDS)


def nameless(rows: Sequence[Row]) -> str:
    """Return the error for a column without a name, which a recipe cannot refer to; empty if there is none."""
    number = next((number for number, name in enumerate(columns_of(rows), 1) if not name.strip()), 0)
    return f"{file_of(rows)}: column {number} has no name; name it in the first line" if number else ""


def _header(columns: Sequence[Column]) -> str:
    """Detect a first line that is a row: one of its labels occurs again below, and another cell is a sentence."""
    sentence = any(len(column.name.split()) >= FEWEST_IN_SENTENCE for column in columns)
    value = next((column.name for column in columns if sentence and column.few and column.name in column.distinct), "")
    if not value:
        return ""
    return f"the first line looks like a row, not a header ({value!r} also occurs below); insert a line of column names"


def _by_column(rows: Sequence[Row]) -> str:
    """Detect a table that pandas wrote by column: one row, each value an object with integers as keys."""
    if len(rows) != 1 or not index_of(rows[0].fields):
        return ""
    return 'the table is stored by column; write df.to_json(FILE, orient="records", lines=True)'


def _nested(columns: Sequence[Column]) -> str:
    """Detect an answer or translation inside another object, which a recipe cannot refer to."""
    words = {*ANSWER_WORDS, "translation"}
    inner = next((column for column in columns if column.nested and column.called & words), None)
    if inner is None or inner.nested is None:
        return ""
    return f"{inner.name} contains objects ({', '.join(list(inner.nested)[:4])}); write each part to its own column"


def _letters(columns: Sequence[Column]) -> str:
    """Detect an answer that is the key of a choice, meaningless without the choices."""
    fix = "add them to the prompt, and write the text of the correct choice as the answer"
    choices = next((c.name for c in columns if c.called & CHOICES and (c.listed or c.nested)), "")
    keys = [c for c in columns if c.few and c.called & WHICH and not c.called & NOTED]
    key = next((c.name for c in keys if max(map(len, c.distinct)) <= LONGEST_CHOICE), "")
    if choices and key:
        return f"{key} only names one of the choices in {choices}; {fix}"
    letters = [column.name for column in columns if column.name.strip().lower() in ("a", "b", "c", "d", "e")]
    possible = {form for name in letters for form in (name, name.lower(), name.upper())}
    answer = next((c for c in columns if c.called & set(ANSWER_WORDS) and c.distinct <= possible), None)
    if len(letters) < 2 or answer is None or answer.name in letters:
        return ""
    return f"{answer.name} only names one of the choices in {', '.join(letters)}; {fix}"


def _rivals(columns: Sequence[Column]) -> str:
    """Detect two answers whose names differ only by a number or letter, such as response_a and response_b."""
    first, second = rivals(columns)
    # A column with the winner is enough evidence; then the prompt may be missing.
    won = any(column.called & WON for column in columns)
    if not first or not (won or asked(columns)):
        return ""
    if winner := next((column.name for column in columns if column.called & NAMES_WINNER), ""):
        fix = f"write {first}, {second} or tie in it"
        return f"{first} and {second} are both answers, and {winner} does not say which is better; {fix}"
    return f"{first} and {second} are both answers; rename the better one to `chosen`, the other to `rejected`"


def rivals(columns: Sequence[Column]) -> tuple[str, str]:
    """Return two answer columns whose names differ only by a number or letter; blank without two."""
    candidates = [column for column in columns if column.text or column.listed]
    answer = named(candidates, RIVALS)
    found = [column.name for column in candidates if answer and column.called == answer.called]
    return (found[0], found[1]) if len(found) > 1 else ("", "")


def _together(columns: Sequence[Column]) -> str:
    """Detect two input texts with a label about their relation."""
    pair = read_together(columns)
    if not pair:
        return ""
    first, second = pair
    labels = [column for column in columns if column.few and not column.called & NOTED and column.name not in pair]
    label = min(labels, key=lambda column: column.values).name if labels else "COLUMN"
    objective = f"objective={{kind: classify, text: {first} + {second}, label: {label}}}"
    fix = f"read both with `--set {quoted(objective)}`, or name one column"
    return f"{first} and {second} are both inputs; {fix}"


def read_together(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return two columns of input texts, by names that belong together or differ by a number or letter."""
    texts = [column for column in columns if column.text and not column.few and not column.called & COMPARED]
    for first, second in combinations(texts, 2):
        spelt_alike = first.name.strip().lower() == second.name.strip().lower()
        same_words = first.called and first.called == second.called and not spelt_alike
        if same_words or {first.name.strip().lower(), second.name.strip().lower()} in BOTH_READ:
            return first.name, second.name
    return ()
