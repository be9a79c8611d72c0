"""The thoughts of a chat template: how it writes and switches them, found by rendering probe chats, not by a name.

The texts of one answer, with G the generation prompt that the template renders for each position of the switch:

    thinking on     G  begin  THOUGHTS  between  ANSWER  end
    thinking off    G  tail                      ANSWER  end

`begin` is empty if G opens the block itself (DeepSeek). `tail` is what the template writes before an answer without
thoughts, such as an empty block; it belongs to the prompt, so that an empty block is never learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tunesmith.errors import OverBudgetError, TemplateError

Switch = Literal["", "enable_thinking", "thinking", "reasoning_effort"]
# Variables by which templates switch thoughts, with the values for off and on. No template turns thoughts off by the
# effort, so off is the lowest effort, and the prompt opens the answer itself.
SWITCHES: Mapping[Switch, tuple[object, object]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "reasoning_effort": ("low", "medium"),
}
# Keys under which messages of other programs hold thoughts, the most common first.
FIELDS = ("reasoning_content", "reasoning", "thinking")
INLINE = "content"  # the template reads a block in the content

# Treatments of the thoughts of a row in training, see `objectives.instruct.Instruct.thinking`.
Mode = Literal["auto", "learn", "mask", "drop", "keep"]
MODES: tuple[str, ...] = get_args(Mode)


def switch_values(thinking: bool | None) -> dict[str, object]:
    """Return the variables of chat templates that turn thinking on or off, under both names; empty for None."""
    return {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}


# Renders messages with these variables, with or without the generation prompt.
Render = Callable[[Sequence[Mapping[str, Any]], bool, Mapping[str, object]], str]


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a block of thoughts, with the white space that their documentation writes around the thoughts."""

    opened: str
    closed: str
    before: str = "\n"  # before the thoughts
    behind: str = "\n"  # behind the thoughts
    answer: str = "\n\n"  # between the block and the answer

    @property
    def begin(self) -> str:
        """The text before the thoughts."""
        return self.opened + self.before

    @property
    def between(self) -> str:
        """The text between thoughts and answer."""
        return self.behind + self.closed + self.answer


# For templates that never render thoughts, because they drop them from every turn; looked up in the template's source.
KNOWN_MARKS = (
    Marks("<think>", "</think>"),
    Marks("<|channel>thought", "<channel|>", answer=""),
    Marks("[THINK]", "[/THINK]", before="", behind="", answer=""),
)
# A block at the beginning of a text, as rows and models of most families write it.
THINK = KNOWN_MARKS[0]


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """The thoughts of one template."""

    switch: Switch  # variable of the template that switches thoughts; empty: it has none
    # key of a message under which the template renders thoughts; `content`: it reads a block in the content; empty:
    # it renders none, so the text of the answer is put together from the other attributes
    field: str
    begin: str  # text that the model writes before its thoughts; empty: the generation prompt has opened the block
    between: str  # text between thoughts and answer
    opening: str  # mark that opens a block, in `begin` or at the end of the generation prompt

    @property
    def opened(self) -> bool:
        """True if the generation prompt opens the block of thoughts itself."""
        return not self.begin.strip()

    @property
    def closing(self) -> str:
        """The mark that ends the thoughts, without white space."""
        return self.between.strip()

    def variables(self, *, thinking: bool, effort: str = "") -> dict[str, object]:
        """Return the template's variables for one position of the switch.

        The effort is for templates that have `reasoning_effort`; by default it is `low` or `medium`.
        """
        if not self.switch:
            return {}
        value = SWITCHES[self.switch][thinking]
        return {self.switch: effort if effort and self.switch == "reasoning_effort" else value}

    def put(self, message: Mapping[str, Any], thoughts: str) -> dict[str, Any]:
        """Return the message with its thoughts where the template reads them; unchanged if it reads none."""
        if not thoughts or not self.field:
            return dict(message)
        if self.field == INLINE:
            return {**message, INLINE: f"{THINK.begin}{thoughts}{THINK.between}{message[INLINE]}"}
        return {**message, self.field: thoughts}

    def harmless(self, text: str) -> str:
        """Return the text with a space inside each mark, so that text cannot open or close a block."""
        for mark in (self.closing, self.opening, *((THINK.closed, THINK.opened) if self.field == INLINE else ())):
            text = text.replace(mark, f"{mark[0]} {mark[1:]}") if mark else text
        return text

    def split(self, text: str, *, open: bool, tail: str = "") -> tuple[str, str]:  # the documented name
        """Split a completion into thoughts and answer, both without the white space around them.

        Args:
            text: the completion with its marks (`Template.decode_thinking`).
            open: whether the prompt had opened the block of thoughts.
            tail: the text that the template writes before an answer without thoughts.

        Returns:
            Thoughts and answer. Unfinished thoughts have an empty answer. A text that opens no block is an answer,
            without the marks that would end one: what was streamed as an answer cannot become thoughts later.
        """
        body = text.lstrip()
        if self.opening and body.startswith(self.opening):
            open, body = True, body[len(self.opening) :]
        # In harmony a block only ends a channel, and what opens the answer is the end of `between`.
        direct = tail.strip()
        last = direct if direct and self.closing.endswith(direct) else self.closing
        thoughts, _, answer = body.partition(last)
        if not open:
            return "", "".join(self._unmarked(body, last)).strip()
        return self._bare(thoughts, last), answer.strip()

    def _bare(self, thoughts: str, last: str) -> str:
        """Return thoughts without marks; blocks that follow one another are separated by a line end."""
        parts = self._unmarked(thoughts, last, self.opening)
        return "\n".join(filter(None, (part.strip() for part in parts)))

    def _unmarked(self, text: str, last: str, *more: str) -> list[str]:
        """Return the parts of a text between the marks that end a block, and more marks."""
        marks = filter(None, (self.closing, self.closing.removesuffix(last), last, *more))
        return re.split("|".join(map(re.escape, marks)), text)


def find_format(render: Render, source: str) -> ThoughtFormat | None:
    """Return how a template writes thoughts; None if it neither renders nor switches them.

    Marks that no chat shows are looked up in the `source` of the template.
    """
    ask = [{"role": "user", "content": "q"}]
    switches = (
        name for name, (off, on) in SWITCHES.items() if render(ask, True, {name: off}) != render(ask, True, {name: on})
    )
    switch: Switch = next(switches, "")
    off: dict[str, object] = {switch: SWITCHES[switch][0]} if switch else {}
    on: dict[str, object] = {switch: SWITCHES[switch][1]} if switch else {}
    prompt = render(ask, True, on)
    marks = next((pair for pair in KNOWN_MARKS if pair.closed in source), THINK)
    opens = prompt.rstrip().endswith(marks.opened)

    inline = f"{THINK.begin}zqt{THINK.between}zqa"
    turns = {field: {"content": "zqa", field: "zqt"} for field in FIELDS} | {INLINE: {"content": inline}}
    changed = False  # the template drops thoughts, or writes them in its own way
    for field, turn in turns.items():
        try:
            chat = render([*ask, {"role": "assistant", **turn}], False, on)
        except OverBudgetError:
            raise
        except TemplateError:  # some templates reject what they do not know
            continue
        begin, thoughts, rest = chat.removeprefix(prompt).partition("zqt")
        between, answer, _ = rest.partition("zqa")
        changed = field == INLINE and inline not in chat
        if thoughts and answer and chat.startswith(prompt) and (changed or field != INLINE):
            opening = begin.strip() or (marks.opened if opens else "")
            return ThoughtFormat(switch, field, begin, between, opening)
    if not (changed or switch or opens):
        return None
    return _composed(switch, _generation_prompt(render, ask, on), _generation_prompt(render, ask, off), marks)


def _generation_prompt(render: Render, ask: Sequence[Mapping[str, Any]], variables: Mapping[str, object]) -> str:
    """Return the text that opens an answer; what comes before it may depend on the switch, too."""
    return render(ask, True, variables).removeprefix(render(ask, False, variables))


def _composed(switch: Switch, prompt: str, without: str, marks: Marks) -> ThoughtFormat:
    """Return the format of a template that renders no thoughts, from its generation prompts `without` and with them."""
    begin, between = marks.begin, marks.between
    before, opened, space = prompt.rpartition(marks.opened)
    if opened and not space.strip():  # the prompt has opened the block
        begin, between = "", space + marks.closed + (marks.answer if space else "")
        if without.startswith(before + marks.closed):
            between = without.removeprefix(before)
    elif without.startswith(prompt):  # an empty block shows the white space, half of it on either side of the thoughts
        head, opened, rest = without.removeprefix(prompt).partition(marks.opened)
        inner, closed, behind = rest.partition(marks.closed)
        if opened and closed and not inner.strip():
            half = len(inner) // 2
            begin, between = head + marks.opened + inner[:half], inner[half:] + marks.closed + behind
    return ThoughtFormat(switch, "", begin, between, marks.opened)
