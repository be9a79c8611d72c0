"""Chats and texts as token ids: a tokenizer with its chat template, and the tokens that are learned.

A template without tool support gets tool offers, calls and results as plain text in the Hermes format. Thoughts are
rendered by the template, or put together from the texts that `thinking.find_format` found in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from tunesmith.data.tokenization.call_formats import CallFormat, calls_as_content, format_of_template, in_words
from tunesmith.data.tokenization.messages import Message, separated
from tunesmith.data.tokenization.template_budget import Probes, render
from tunesmith.data.tokenization.thinking import Switch, ThoughtFormat, find_format
from tunesmith.data.tokenization.tokenizer import (
    chat_source,
    frame,
    leading_bos,
    special_ids,
    special_tokens,
    with_offsets,
)
from tunesmith.data.tokenization.tokens import Encoded, Tokens
from tunesmith.errors import OverBudgetError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Template", "Tokens"]

# Keys of a message that are not for the template.
OURS = ("tools", "thoughts", "weight")


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of characters that is learned, with the weight of its loss."""

    start: int
    end: int
    weight: float = 1.0


class Template:
    """A tokenizer with its chat format.

    Args:
        tokenizer: tokenizer of the model.
        chat: whether the model has a chat format; False for encoders.

    Raises:
        TemplateError: if assistant turns cannot be located in the rendered chat or have no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool = True) -> None:
        self.tokenizer = tokenizer
        self.source = chat_source(tokenizer)
        self._special = special_tokens(tokenizer)
        self._bos = leading_bos(tokenizer)
        self.frame = frame(tokenizer)  # ids before and after every text
        self.chats = chat
        self._lead = self._end = self._tail = ""
        self._composes = False
        self._probes = Probes()
        if chat:
            with self._probes.spend():
                self._find_end()
        self.end_ids = self._close() if chat else []
        eos = tokenizer.eos_token_id
        # Generation stops at these ids.
        self.stop_ids = frozenset([*self.end_ids[-1:], *([] if eos is None else [eos])])
        self.hash = hashlib.sha256(f"{self.source}\n{self._end}".encode()).hexdigest()[:16]

    def document(self, text: str, *, limit: int = 0) -> Tokens:
        """Encode a text with the tokenizer's special tokens; every id is learned.

        Args:
            text: the document.
            limit: maximum number of tokens; 0: no limit.
        """
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        ids = self.shortened(ids, limit) if limit else ids
        return Tokens(ids, [True] * len(ids))

    def shortened(self, ids: list[int], limit: int) -> list[int]:
        """Cut the ids of a document to `limit`, keeping the tokens that the tokenizer adds after a text.

        The tokenizer's own truncation is not used: it is state that all threads share.
        """
        return ids if len(ids) <= limit else [*ids[: limit - len(self.frame[1])], *self.frame[1]]

    @cached_property
    def thought_format(self) -> ThoughtFormat | None:
        """Find how the template writes thoughts; None if it neither renders nor switches them."""
        with self._probes.spend():
            return find_format(self._render_probe, self.source) if self.chats else None

    @property
    def thinks(self) -> bool:
        """True if the template renders or switches thoughts."""
        return self.thought_format is not None

    @property
    def switch(self) -> Switch:
        """The variable by which the template switches thoughts; empty if there is none."""
        return self.thought_format.switch if self.thought_format else ""

    def opens(self, *, thinking: bool | None = None) -> bool:
        """Return whether `prompt` opens the block of thoughts itself, the `open` of `split_thoughts`."""
        return bool(thinking and self.thought_format and self.thought_format.opened)

    def chat(self, messages: Sequence[Message], *, thinking: bool | None = None, learn_thoughts: bool = True) -> Tokens:
        """Encode a chat. Assistant turns and their end tokens are learned, as far as their weight is not 0.

        With thinking, only the last turn is learned, because templates drop the thoughts of earlier ones: `rows`
        encodes every turn.

        Args:
            messages: the chat.
            thinking: whether the last turn is an answer with thoughts; None: if it has some.
            learn_thoughts: learn the thoughts too, not only the answer behind them.

        Raises:
            TemplateError: a turn cannot be located in the rendered chat, or the template knows no thoughts.
        """
        messages = self._separated(messages)
        if thinking is None:
            thinking = self.thinks and bool(messages[-1].thoughts)
        text, spans = self._learned(self._ready(messages), thinking=thinking, learn_thoughts=learn_thoughts)
        ids, offsets = self._encode(text)
        weights = [
            next((span.weight for span in spans if start < span.end and end > span.start), 0.0)
            for start, end in offsets
        ]
        plain = all(span.weight == 1 for span in spans)
        return Tokens(ids, [weight > 0 for weight in weights], [] if plain else weights)

    def rows(
        self, messages: Sequence[Message], *, thinking: bool | None = None, learn_thoughts: bool = True
    ) -> list[Tokens]:
        """Encode a chat so that every learned turn reads like a generated one: as one sequence, or one per turn.

        A turn with thoughts needs a separate sequence that ends with it: as a part of the history it would be
        written without them, and the model would learn to answer without thinking where thinking is on. Templates
        that rewrite earlier turns need one sequence per turn, too.

        Args:
            messages: the chat.
            thinking: False ignores all thoughts; otherwise turns with thoughts are rendered with them.
            learn_thoughts: learn the thoughts too, not only the answers behind them.

        Returns:
            Sequences whose learned tokens are those of the assistant.
        """
        messages = self._separated(messages)
        if thinking is False or not self.thinks:
            messages = [replace(message, thoughts="") for message in messages]
        learned = [i for i, message in enumerate(messages) if message.role == "assistant" and message.weight]
        if not any(messages[i].thoughts for i in learned):
            try:
                return [self.chat(messages, thinking=False)]
            except OverBudgetError:
                raise
            except TemplateError:  # the template rewrites earlier turns
                if len(learned) < 2:
                    raise
        context = _unlearned(messages)
        return [
            self.chat([*context[:i], messages[i]], thinking=bool(messages[i].thoughts), learn_thoughts=learn_thoughts)
            for i in learned
        ]

    def prompt(
        self, messages: Sequence[Message], *, thinking: bool | None = None, effort: str = "", thoughts: str = ""
    ) -> list[int]:
        """Encode the messages and the generation prompt, after which the assistant answers.

        Args:
            messages: a chat that ends with the prompt.
            thinking: whether the model thinks first; None is off.
            effort: with the switch `reasoning_effort`, its value: low, medium or high.
            thoughts: thoughts that are finished already, so that the answer follows.

        Raises:
            TemplateError: thinking is asked for, and the template knows none.
        """
        clean = self._ready(self._separated(messages))
        text = self.prompt_text(clean, thinking=bool(thinking), effort=effort)
        if thoughts:
            form = self._thinking_format()
            text += form.begin + self._clean_thoughts(thoughts) + form.between
        return self._encode(text)[0]

    def split_thoughts(self, text: str, *, open: bool) -> tuple[str, str]:  # the documented name
        """Split a completion into thoughts and answer.

        Args:
            text: the completion with its marks, as `decode_thinking` returns it.
            open: whether the prompt had opened the block of thoughts (`opens`).

        Returns:
            Thoughts and answer. Unfinished thoughts have an empty answer.
        """
        form = self.thought_format
        return ("", text.strip()) if form is None else form.split(text, open=open, tail=self._tail)

    def decode_thinking(self, ids: Sequence[int]) -> str:
        """Decode a completion for `split_thoughts`: without special tokens except the marks of thoughts."""
        form = self.thought_format
        marks = "" if form is None else form.begin + form.between + form.opening + self._tail
        if self._special is None or not self._special.search(marks):
            return self.decode(ids)
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
        return self._special.sub(lambda match: match[0] if match[0] in marks else "", text)

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """Encode one answer to `messages`, without the end of the turn."""
        tokens = self.chat([*_unlearned(messages), Message("assistant", text)], thinking=False)
        start = len(self.prompt(messages))
        return tokens.ids[start : start + sum(tokens.learn[start:]) - len(self.end_ids)]

    def fit(
        self, messages: Sequence[Message], limit: int, *, thinking: bool | None = None
    ) -> tuple[list[Message], bool]:
        """Shorten messages to `limit` tokens; return them and whether one was shortened.

        The longest turn that is not an assistant turn is cut at its end, so that answers stay complete. Messages that
        end with a prompt are counted with the generation prompt, for this position of the thinking switch.
        """
        fitted, shortened = list(messages), False
        while (over := self._length(fitted, thinking=thinking) - limit) > 0:
            prompts = [index for index, message in enumerate(fitted) if message.role != "assistant"]
            if not prompts:
                break
            longest = max(prompts, key=lambda index: len(fitted[index].content))
            whole = self._clean(fitted[longest])["content"]
            short = self._cut(whole, over)
            if len(short) >= len(whole):
                # Only one word is left: the answers or the tools alone are too long. With tools nothing is cut.
                return (list(messages), False) if messages[0].tools else (fitted, shortened)
            fitted[longest], shortened = replace(fitted[longest], content=short), True
        return fitted, shortened

    def fit_text(self, text: str, ask: Callable[[str], Sequence[Message]], limit: int) -> list[Message]:
        """Return the prompt about a text within `limit` tokens; only the text is cut, at its end."""
        while (over := self._length(ask(text)) - limit) > 0 and len(short := self._cut(text, over)) < len(text):
            text = short
        return list(ask(text))

    def _length(self, messages: Sequence[Message], *, thinking: bool | None = None) -> int:
        """Return the number of tokens of a chat, or of a prompt if it does not end with an answer."""
        if messages[-1].role != "assistant":
            return len(self._encode(self.prompt_text(self._ready(messages), thinking=bool(thinking)))[0])
        messages = self._separated(messages)
        thinking = self.thinks and bool(messages[-1].thoughts) and thinking is not False
        return len(self._encode(self._chat_text(self._ready(messages), thinking=thinking))[0])

    def _cut(self, content: str, over: int) -> str:
        """Remove the last `over` tokens of a text, keeping at least its first character."""
        encoding = with_offsets(self.tokenizer, content)
        starts = [start for start, _ in encoding["offset_mapping"]]
        keep = max(1, len(starts) - over)
        end = starts[keep] if keep < len(starts) else len(content)
        return content[:end].rstrip() or content[:1]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _separated(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with the thoughts of assistant turns apart from their content, if there are thoughts."""
        return [separated(message) for message in messages] if self.thinks else list(messages)

    def _ready(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages for the template; tools become text if it cannot write calls that are parsed."""
        tools = any(message.tools or message.calls for message in messages)
        if tools and (found := self.call_format) is not None:
            messages = [self._with_calls(message, found) for message in messages]
        elif tools:
            messages = in_words(messages, self._in_strings)
        return [self._clean(message) for message in messages]

    def _with_calls(self, message: Message, found: CallFormat) -> Message:
        """Return a message whose calls the template can render."""
        message = replace(message, calls=tuple(map(found.harmless, message.calls)))
        if len(message.calls) <= 1 or self._takes_several:
            return message
        return calls_as_content(message, lambda chat: self._last_turn(chat)[1].removesuffix(self._end).strip())

    @cached_property
    def call_format(self) -> CallFormat | None:
        """The format in which the template writes calls; None if tools, calls and results are written as text."""
        # Where a template knows thoughts, each turn is learned in a separate sequence.
        with self._probes.spend():
            return format_of_template(self._last_turn_decoded, last_only=self.thinks)

    @cached_property
    def _takes_several(self) -> bool:
        """True if the template renders several calls in one turn; they are rendered one by one otherwise."""
        with self._probes.spend():
            return format_of_template(self._last_turn_decoded, last_only=self.thinks, several=True) is not None

    def _last_turn(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return a rendered chat without thoughts, and the text of its last turn with its end."""
        full, spans = self._learned([self._clean(message) for message in messages], thinking=False)
        return full, full[spans[-1].start : spans[-1].end]

    def _last_turn_decoded(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return the same, decoded like a completion: marks of calls that are special tokens are lost."""
        full, last = self._last_turn(messages)
        return full, self.decode(self._encode(last)[0])

    def in_json(self, text: str, messages: Sequence[Message]) -> str:
        """Return a completion with its tool calls as JSON, in whatever format the template writes them.

        Args:
            text: the completion.
            messages: the prompt; its first message offers the tools.
        """
        if not (messages and messages[0].tools) or self.call_format is None:
            return text
        return self.call_format.in_json(text, messages[0].tools)

    def _learned(
        self, clean: Sequence[Mapping[str, Any]], *, thinking: bool, learn_thoughts: bool = True
    ) -> tuple[str, list[_Span]]:
        """Return the rendered chat and the learned ranges of its characters, one per assistant turn."""
        full = self._chat_text(clean, thinking=thinking)
        last = len(clean) - 1
        if thinking:
            start = len(self.prompt_text(clean[:last], thinking=True))
            end = len(full) if "tool_calls" in clean[last] else start + len(self._body(clean[last], thinking=True))
            start += 0 if learn_thoughts else len(self._thoughts_text(clean[last]))
            return full, [_Span(start, end, clean[last]["weight"])]
        return full, [
            _Span(*self._located(clean, i, full), message["weight"])
            for i, message in enumerate(clean)
            if message["role"] == "assistant" and message["weight"]
        ]

    def _chat_text(self, clean: Sequence[Mapping[str, Any]], *, thinking: bool) -> str:
        """Return the rendered chat; its last answer is put together here if the template does not append it so.

        Templates that write the history differently (DeepSeek, harmony), or end a turn with the beginning of the next
        one (GLM), do not.
        """
        last = clean[-1]
        full = self._render(clean, thinking=thinking)
        if last["role"] != "assistant" or (not thinking and not self._composes):
            return full
        before = self.prompt_text(clean[:-1], thinking=thinking)
        if "tool_calls" in last:
            begin = before + self._thoughts_text(last).rstrip() if thinking else before
            if full.startswith(begin) and full.rstrip().endswith(self._end):
                return full.rstrip()
            raise TemplateError(
                "chat template: writes no tool call behind thoughts; set thinking: drop for rows with tool calls"
                if thinking
                else "chat template: writes a tool call otherwise than behind its generation prompt; "
                "leave out the rows with tool calls"
            )
        text = before + self._body(last, thinking=thinking)
        return full if full.startswith(text) else text

    def _body(self, message: Mapping[str, Any], *, thinking: bool) -> str:
        """Return the text that the model writes behind the generation prompt, without tool calls."""
        lead = self._thoughts_text(message) if thinking else self._lead
        return f"{lead}{message['content']}{self._end}"

    def _thoughts_text(self, message: Mapping[str, Any]) -> str:
        form = self._thinking_format()
        return form.begin + str(message["thoughts"]) + form.between

    def prompt_text(self, turns: Sequence[Mapping[str, Any]], *, thinking: bool, effort: str = "") -> str:
        """Return the rendered turns and the generation prompt, up to where the answer or its thoughts begin.

        Args:
            turns: role and content of each turn, in which nothing is broken up.
            thinking: whether the model thinks first.
            effort: as in `prompt`.

        Raises:
            TemplateError: the template rejects the turns, or knows no thoughts.
        """
        if thinking:
            self._thinking_format()
        text = self._render(turns, answer=True, thinking=thinking, effort=effort)
        return text if thinking else text + self._tail

    def _thinking_format(self) -> ThoughtFormat:
        if self.thought_format is None:
            raise TemplateError(
                "thinking: the chat template of this model has no thoughts; leave the switch out, set thinking: drop, "
                "or use a model that thinks"
            )
        return self.thought_format

    def _clean_thoughts(self, thoughts: str) -> str:
        """Return thoughts without space around them and with everything broken up that could end them."""
        return self._thinking_format().harmless(self.harmless(thoughts.strip()))

    def _clean(self, message: Message) -> dict[str, Any]:
        """Return the message with special tokens in its text broken up, so that text cannot end a turn."""
        text = message.content.strip() if message.role == "assistant" else message.content
        if message.role == "assistant" and self.thought_format is not None:
            text = self.thought_format.harmless(text)
        thoughts = self._clean_thoughts(message.thoughts) if message.thoughts and self.thinks else ""
        fields: dict[str, Any] = {
            "role": message.role,
            "content": self.harmless(text),
            "thoughts": thoughts,
            "weight": message.weight,
        }
        calls = [{"name": self.harmless(c.name), "arguments": self._json(c.arguments)} for c in message.calls]
        if calls:
            fields["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        if message.tools:
            fields["tools"] = self._json(message.tools)
        return fields

    def _json(self, text: str) -> Any:
        """Parse JSON with special tokens in its strings broken up."""
        return json.loads(self.harmless(text))

    def harmless(self, text: str) -> str:
        """Return the text with a space inside each special token, so that user text cannot contain one."""
        if self._special is None:
            return text
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _in_strings(self, text: str) -> str:
        """Return JSON with the first letter of each special token escaped, so that it is parsed unchanged."""
        if self._special is None:
            return text
        return self._special.sub(lambda match: f"\\u{ord(match[0][0]):04x}{match[0][1:]}", text)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, answer: bool = False, thinking: bool = False, effort: str = ""
    ) -> str:
        """Render messages with the thinking switch in one position."""
        form = self.thought_format
        variables: dict[str, object] = {"enable_thinking": thinking}
        if form is not None:
            variables |= form.variables(thinking=thinking, effort=effort)
            if thinking:
                messages = [form.put(message, message.get("thoughts", "")) for message in messages]
        return self._render_probe(messages, answer, variables)

    def _render_probe(
        self, messages: Sequence[Mapping[str, Any]], answer: bool, variables: Mapping[str, object]
    ) -> str:
        """Render messages with variables of the template, as `thinking.Render`."""
        # As `apply_chat_template` of transformers does, which bounds neither time nor memory.
        given = {
            **self.tokenizer.special_tokens_map,
            **variables,
            "messages": [_without_ours(message) for message in messages],
            "tools": messages[0].get("tools", []),
            "documents": None,
            "add_generation_prompt": answer,
        }
        try:
            return render(self.source, given)
        except TemplateError:
            raise
        except Exception as error:  # a template is code from the model's files and may raise anything
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TemplateError(
                f"chat template: rejects the roles {[m['role'] for m in messages]} ({first}); "
                "drop the system turn or use a model whose template supports these roles"
            ) from error

    def _located(self, clean: Sequence[Mapping[str, Any]], turn: int, full: str) -> tuple[int, int]:
        """Return the character range of one assistant turn without thoughts and its end in the rendered chat."""
        # The format of calls is up to the template, so only the end of such a turn can be located.
        upto = self._render(clean[: turn + 1]).rstrip() if "tool_calls" in clean[turn] else ""
        body = self._lead + clean[turn]["content"] + self._end
        prompts = [self.prompt_text(clean[:turn], thinking=False)]
        if self.thinks:  # the history is written without the empty block of a prompt
            prompts.append(self.prompt_text(clean[:turn], thinking=True))
        for prefix in prompts:
            start = len(prefix)
            if not full.startswith(prefix):
                continue
            if upto and full.startswith(upto) and upto.endswith(self._end):
                return start, len(upto)
            if not upto and full.startswith(body, start):
                return start, start + len(body)
        raise TemplateError(
            f"chat template: turn {turn + 1} cannot be located in the rendered chat because the template "
            "rewrites earlier turns; use one that appends"
        )

    def _find_end(self) -> None:
        """Find the texts around an assistant's answer in probe chats without thoughts.

        Sets `_lead`, white space before the content that is learned with it; `_end`, the text that ends a turn;
        `_tail`, further text before the content, which becomes part of the prompt; and `_composes`, whether the
        template writes the last answer otherwise than behind its prompt.
        """
        prompt = [{"role": "user", "content": "q"}]
        prefix = self._render(prompt, answer=True)
        turns = [*prompt, {"role": "assistant", "content": "zq"}]
        full = self._render(turns)
        lead, content, end = full.removeprefix(prefix).partition("zq")
        form = self.thought_format
        # A history without the empty block of the prompt: what the template writes before both is the same.
        header = "" if form is None else self._render(prompt, answer=True, thinking=True)
        header = header.rpartition(form.opening)[0] if form is not None and form.opened else header
        if form is not None and not full.startswith(prefix) and full.startswith(header) and "zq" in full:
            lead = form.between if prefix.rstrip().endswith(form.opening) else ""
            end = full.rpartition("zq")[2]
            self._composes = True
        elif not full.startswith(prefix) or not content or (lead.strip() and form is None):
            raise TemplateError("chat template: the answer does not follow its prompt; use a template that appends")
        if lead.strip():
            self._tail, lead = lead, ""
        if not end.strip():
            end = self._end_of_next(turns, prefix)
            self._composes = True
        else:
            end = self._end_of_each(turns, end)
        self._lead, self._end = lead, end.rstrip()
        self._composes = self._composes or self._moves_system()

    def _moves_system(self) -> bool:
        """Return whether an answer moves or drops the system turn before it (Mistral 7B v0.3, Nemo)."""
        prompt = [{"role": "system", "content": "zs"}, {"role": "user", "content": "q"}]
        try:
            asked = self._render(prompt, answer=True)
            return not self._render([*prompt, {"role": "assistant", "content": "zq"}]).startswith(asked)
        except OverBudgetError:
            raise
        except TemplateError:  # it has no system turns
            return False

    def _end_of_each(self, turns: Sequence[Mapping[str, Any]], end: str) -> str:
        """Return the end of a turn without what the template adds after the last turn of a chat (Phi-3, Phi-4-mini)."""
        try:
            more = self._render([*turns, {"role": "user", "content": "zr"}])
        except OverBudgetError:
            raise
        except TemplateError:  # it writes a single question
            return end
        after = more.rpartition("zq")[2]
        if after.startswith(end.rstrip()) or self._special is None:
            return end
        closed = [match.end() for match in self._special.finditer(commonprefix([end, after]))]
        return end[: closed[-1]] if closed else end

    def _end_of_next(self, turns: Sequence[Mapping[str, Any]], prefix: str) -> str:
        """Return the special token that opens only the user's next turn, for turns without an end token."""
        more = self._render([*turns, {"role": "user", "content": "zr"}])
        after = more.rpartition("zq")[2].lstrip()
        opened = self._special.match(after) if self._special else None
        unasked = self._render(turns[:1])
        if opened is None or opened[0] in prefix.removeprefix(unasked):
            raise TemplateError(
                "chat template: assistant turns have no end marker, so the model could not learn to stop; "
                "add the end token after the assistant's content"
            )
        return opened[0]

    def _close(self) -> list[int]:
        """Return the ids of the text that ends a turn, encoded after an answer."""
        answer = "zq"  # SentencePiece adds a space at the start of a text
        encoding = with_offsets(self.tokenizer, answer + self._end)
        pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ids: list[int] = [token for token, (start, _) in pairs if start >= len(answer)]
        if len(ids) > 1 and ids[-1] not in special_ids(self.tokenizer):
            raise TemplateError(
                f"chat template: the tokenizer splits the end marker {self._end!r} of assistant turns into "
                f"{len(ids)} ordinary tokens; close turns with the end token"
            )
        return ids

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a rendered chat to ids and character offsets, with exactly one BOS if the model has one."""
        encoding = with_offsets(self.tokenizer, text)
        ids = list(encoding["input_ids"])
        offsets = list(encoding["offset_mapping"])
        if self._bos is not None:
            while ids[:2] == [self._bos, self._bos]:
                ids, offsets = ids[1:], offsets[1:]
            if ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
        return ids, offsets


def _unlearned(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with all answers as context."""
    return [replace(message, weight=0.0) if message.role == "assistant" else message for message in messages]


def _without_ours(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message for the template; its thoughts under all names that templates read, as in transformers."""
    found = {key: value for key, value in message.items() if key not in OURS}
    thoughts = next((found[key] for key in ("reasoning_content", "thinking", "reasoning") if key in found), None)
    return found if thoughts is None else {"thinking": thoughts, **found, "reasoning_content": thoughts}
