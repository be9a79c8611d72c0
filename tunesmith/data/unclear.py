"""Why nobody can tell by the columns of rows what is to be learned from them, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tunesmith.data.columns import NOTED, Column, columns_held, named
from tunesmith.data.kinds import thumb_of
from tunesmith.data.rows import Row, columns_of, file_of

# Words in a header that tell what is asked, what is answered, and how good an answer is.
PROMPT_WORDS = (
    "prompt", "question", "query", "request", "ask", "q", "instruction", "problem", "user", "customer", "issue",
)  # fmt: skip
ANSWER_WORDS = (
    "answer", "answers", "reply", "response", "solution", "a", "output", "resolution", "agent", "assistant", "summary",
)  # fmt: skip
MARKS = ("rating", "score", "stars", "helpfulness", "quality", "vote", "grade")
THUMB_WORDS = ("label", "feedback", "thumb", "thumbs", "vote", "rating", "kto", "desirable", "liked")
# What one of two answers is called, and what says which of them won: in Arena's, SHP's and WebGPT's rows.
RIVALS = (*ANSWER_WORDS, "completion", "conversation", "chat", "ref")
WON = {"winner", "preferred", "preference", "score", "labels"}
CHOICES, LONGEST_CHOICE = {"choices", "options", "endings"}, 2  # a letter or a number
WHICH = {*ANSWER_WORDS, "label", "target", "gold", "key"}
BOTH_READ = (
    {"premise", "hypothesis"},
    {"question", "passage"},
    {"question", "context"},
    {"question", "sentence"},
)
FEWEST_ASKED = 3  # words of a question, in the middle: names have two
FEWEST_IN_SENTENCE = 4


def unclear(rows: Sequence[Row]) -> str:
    """What keeps the columns from being guessed, with its cure; nothing where nothing does."""
    columns = columns_held(rows)
    found = (
        _by_column(rows)
        or _header(columns)
        or _nested(columns)
        or _letters(columns)
        or _rivals(columns)
        or _together(columns)
    )
    return f"{file_of(rows)}: {found}" if found else ""


def unjudged(rows: Sequence[Row], *, read: Collection[str]) -> str:
    """Why the answers in the columns that are `read` are not simply what to learn: what else they need to be right, or
    marks beside them that say that some are bad; nothing where they are."""
    columns = columns_held(rows)
    if found := _letters(columns):
        return f"{file_of(rows)}: {found}"
    beside = [column for column in columns if column.name not in read]
    mark = next((one for one in beside if one.few and one.called and one.called <= set(MARKS) and _numbers(one)), None)
    if mark:
        cure = f"name the columns in the recipe, and keep the good ones by data.where: {{{mark.name}: [...]}}"
        return f"{file_of(rows)}: {mark.name} marks the answers, so not all are to be learned; {cure}"
    thumb = next((column for column in beside if _judges(column, rows)), None)
    if thumb is None:
        return ""
    cure = (
        f"call it `label` and fill every row to learn from good and bad, or keep the good ones by data.where: "
        f"{{{thumb.name}: [...]}}, or take it out if it says something else"
    )
    return f"{file_of(rows)}: {thumb.name} may say which answers are good, so not all are to be learned; {cure}"


def _judges(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column holds thumbs, perhaps not in every row: of both kinds, or called like one."""
    if not column.thumbs or column.called & NOTED:
        return False
    return bool(column.called & set(THUMB_WORDS)) or {thumb_of(row.fields.get(column.name)) for row in rows} >= {
        True,
        False,
    }


def asked(columns: Sequence[Column]) -> Column | None:
    """The column of questions, by its name: texts of several words that are not the same few."""
    texts = [column for column in columns if column.text and not column.few and column.words >= FEWEST_ASKED]
    return named(texts, PROMPT_WORDS)


def nameless(rows: Sequence[Row]) -> str:
    """The fault of a column without a name, which no recipe can name; nothing where there is none."""
    place = next((number for number, name in enumerate(columns_of(rows), 1) if not name.strip()), 0)
    return f"{file_of(rows)}: column {place} has no name; give it one in the first line" if place else ""


def _header(columns: Sequence[Column]) -> str:
    """A first line that is no header: a label in it comes again, beside a sentence."""
    sentence = any(len(column.name.split()) >= FEWEST_IN_SENTENCE for column in columns)
    row = next((column.name for column in columns if sentence and column.few and column.name in column.distinct), "")
    return (
        f"the first line looks like a row ({row!r} stands below it again); put a line of names above it" if row else ""
    )


def _by_column(rows: Sequence[Row]) -> str:
    """A table that pandas wrote column by column: one row, whose columns hold a value for each number."""
    held = [] if len(rows) != 1 else list(rows[0].fields.values())
    numbered = [isinstance(value, dict) and list(value) == [str(n) for n in range(len(value))] for value in held]
    if not held or not all(numbered):
        return ""
    return 'the table stands there column by column; write df.to_json(FILE, orient="records", lines=True)'


def _nested(columns: Sequence[Column]) -> str:
    """An answer or a translation inside another object, which no recipe can name."""
    words = {*ANSWER_WORDS, "translation"}
    inner = next((column for column in columns if column.nested and column.called & words), None)
    if inner is None or inner.nested is None:
        return ""
    return f"{inner.name} holds objects ({', '.join(list(inner.nested)[:4])}); write each part as a column of its own"


def _letters(columns: Sequence[Column]) -> str:
    """An answer that is one of lettered choices, which says nothing without them."""
    cure = "write them into the question, and the right one's words as the answer"
    choices = next((one.name for one in columns if one.called & CHOICES and (one.listed or one.nested)), "")
    keys = [one for one in columns if one.few and one.called & WHICH and not one.called & NOTED]
    which = next((one.name for one in keys if max(map(len, one.distinct)) <= LONGEST_CHOICE), "")
    if choices and which:
        return f"{which} says which of the choices in {choices} is right; {cure}"
    letters = [column.name for column in columns if column.name.strip().lower() in ("a", "b", "c", "d", "e")]
    possible = {form for name in letters for form in (name, name.lower(), name.upper())}
    answer = next((one for one in columns if one.called & set(ANSWER_WORDS) and one.distinct <= possible), None)
    if len(letters) < 2 or answer is None or answer.name in letters:
        return ""
    return f"{answer.name} is a letter, and the choices stand in {', '.join(letters)}; {cure}"


def _rivals(columns: Sequence[Column]) -> str:
    """Answers or chats that only a number or a letter tells apart, as response_a and response_b."""
    said = [column for column in columns if column.text or column.listed]
    answer = named(said, RIVALS)
    alike = [column.name for column in said if answer and column.called == answer.called]
    # A question may be missing where something says which of the two won.
    won = any(column.called & WON for column in columns)
    if len(alike) < 2 or not (won or asked(columns)):
        return ""
    return f"{' and '.join(alike[:2])} both answer; write the better one as `chosen`, the other as `rejected`"


def _together(columns: Sequence[Column]) -> str:
    """Two texts of which a label says how they stand to each other."""
    texts = [column for column in columns if column.text and not column.few]
    for one in texts:
        for other in texts[texts.index(one) + 1 :]:
            alike = one.called == other.called and one.name != other.name and one.called
            if alike or {one.name.strip().lower(), other.name.strip().lower()} in BOTH_READ:
                return f"{one.name} and {other.name} are both read; write them into one column, as a prompt or a text"
    return ""


def _numbers(column: Column) -> bool:
    return all(word.replace(".", "", 1).isdigit() for word in column.distinct)
