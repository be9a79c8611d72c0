"""Chats and documents to token ids, with the mask of what may be learned.

One renderer serves training, scoring, generation, the server and the export, so a model is never
asked in another format than the one it was trained in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.data.calls import Call, calls_in
from tunesmith.data.examples import Message
from tunesmith.data.tokenizer import chat_source, frame, leading_bos, special_ids, special_tokens
from tunesmith.data.tool_words import in_words
from tunesmith.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A chat with all that tools need of a template, each part under a word that is found again.
TOOL_PROBE = (
    Message("user", "q", tools=json.dumps([{"type": "function", "function": {"name": "zqtool", "parameters": {}}}])),
    Message("assistant", "", (Call("zqcall", json.dumps({"zqkey": 1})),)),
    Message("tool", "zqresult"),
    Message("assistant", "zq"),
)
TOOL_WORDS = ("zqtool", "zqresult")
THOUGHTS = re.compile(r"\s*(<think>.*</think>\s*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and, for each, whether the loss may look at it as a target."""

    ids: list[int]
    learn: list[bool]

    @classmethod
    def of(cls, asked: Sequence[int], answer: Sequence[int] = ()) -> Tokens:
        """What is asked with its answer, of which alone each id is learned."""
        return cls([*asked, *answer], [False] * len(asked) + [True] * len(answer))

    @property
    def learned(self) -> int:
        """Number of ids the loss may look at."""
        return sum(self.learn)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token sequences: one for most objectives, two for a pair, one for each window of a document.

    For a model that finds hidden words: the word of each id (-1: none), and once some are hidden their places and ids.
    `reference` is the log-probability of the learned ids of each sequence before anything moved, once it is known.
    """

    sequences: tuple[Tokens, ...]
    where: str
    label: tuple[float, ...] = ()
    shortened: bool = False
    words: tuple[int, ...] = ()
    hidden: tuple[tuple[int, int], ...] = ()
    reference: tuple[float, ...] = ()
    asks: bool = False  # answers to it are drawn while training, so it teaches though nothing in it is learned

    @property
    def length(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(len(tokens.ids) for tokens in self.sequences)

    @property
    def size(self) -> int:
        """Number of tokens of all sequences, each as long as the longest."""
        return self.length * len(self.sequences)


class Template:
    """A tokenizer with its chat format. Raises TemplateError if the format cannot be masked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool = True) -> None:
        self.tokenizer = tokenizer
        self.source = chat_source(tokenizer)
        self._special = special_tokens(tokenizer)
        self._bos = leading_bos(tokenizer)
        self._behind = frame(tokenizer)[1]
        self.chats = chat
        self._lead, self._end = self._find_end() if chat else ("", "")
        self.end_ids = self._close() if chat else []
        own = tokenizer.eos_token_id
        # Ids after which an answer is complete.
        self.stop_ids = frozenset([*self.end_ids[-1:], *([] if own is None else [own])])
        self.hash = hashlib.sha256(f"{self.source}\n{self._end}".encode()).hexdigest()[:16]

    def document(self, text: str, *, limit: int = 0) -> Tokens:
        """A text with the tokenizer's own special tokens, every id learned; cut at `limit` tokens if given."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        ids = self.shortened(ids, limit) if limit else ids
        return Tokens(ids, [True] * len(ids))

    def shortened(self, ids: list[int], limit: int) -> list[int]:
        """The ids of a document within `limit`, what stands behind every text at their end.

        Not by the tokenizer's own truncation, which is a state that all threads share.
        """
        return ids if len(ids) <= limit else [*ids[: limit - len(self._behind)], *self._behind]

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """A chat whose assistant turns, with their end tokens, are learned and nothing else is."""
        full, spans = self._learned(self._ready(messages))
        ids, offsets = self._encode(full)
        return Tokens(ids, [any(a < end and b > start for start, end in spans) for a, b in offsets])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids after which the model is to answer."""
        return self._encode(self._render(self._ready(messages), answer=True))[0]

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of one answer to `messages`, without the end of the turn."""
        tokens = self.chat([*messages, Message("assistant", text)])
        start = len(self.prompt(messages))
        return tokens.ids[start : start + sum(tokens.learn[start:]) - len(self.end_ids)]

    def fit(self, messages: Sequence[Message], limit: int) -> tuple[list[Message], bool]:
        """The same messages within `limit` tokens, and whether one was shortened.

        The longest turn that is not learned gives way, at its end, so that answers stay whole. Messages
        that end with a question are counted with what makes the model answer.
        """
        fitted, shortened = list(messages), False
        while (over := self._length(fitted) - limit) > 0:
            given = [i for i, message in enumerate(fitted) if message.role != "assistant"]
            if not given:
                break
            longest = max(given, key=lambda i: len(fitted[i].content))
            whole = self._clean(fitted[longest])["content"]
            short = self._cut(whole, over)
            if len(short) >= len(whole):
                # One word is left of it. Answers are too long alone, or tools, and then the turns are left as they are.
                return (list(messages), False) if messages[0].tools else (fitted, shortened)
            fitted[longest], shortened = replace(fitted[longest], content=short), True
        return fitted, shortened

    def fit_text(self, text: str, ask: Callable[[str], Sequence[Message]], limit: int) -> list[Message]:
        """What is asked about a text within `limit` tokens: the text gives way, at its end, and not what is asked."""
        while (over := self._length(ask(text)) - limit) > 0 and len(short := self._cut(text, over)) < len(text):
            text = short
        return list(ask(text))

    def _length(self, messages: Sequence[Message]) -> int:
        """Number of ids of a chat, or of a prompt if nothing is answered at its end."""
        return len(self._encode(self._render(self._ready(messages), answer=messages[-1].role != "assistant"))[0])

    def _cut(self, content: str, over: int) -> str:
        """The text without its last `over` tokens, at least its first character."""
        found = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in found["offset_mapping"]]
        keep = max(1, len(starts) - over)
        end = starts[keep] if keep < len(starts) else len(content)
        return content[:end].rstrip() or content[:1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ready(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template takes them; one that knows no tools, or not in JSON, gets them in words."""
        tools = any(message.tools or message.calls for message in messages)
        return [self._clean(m) for m in (in_words(messages) if tools and not self._takes_tools else messages)]

    @cached_property
    def _takes_tools(self) -> bool:
        """Whether the template writes tools and results, and calls so that they are read again from what it writes."""
        try:
            full, spans = self._learned([self._clean(message) for message in TOOL_PROBE])
        except TemplateError:
            return False
        # Some write calls in XML: what is learned so could be neither scored nor served.
        called = calls_in(full[slice(*spans[0])]) == [call.plain() for call in TOOL_PROBE[1].calls]
        return called and all(word in full for word in TOOL_WORDS)

    def _learned(self, clean: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered chat and the characters of each assistant turn in it."""
        full = self._render(clean)
        return full, [self._span(clean, turn, full) for turn, m in enumerate(clean) if m["role"] == "assistant"]

    def _clean(self, message: Message) -> dict[str, Any]:
        """The message with special tokens inside its text broken up: text cannot open or close a turn."""
        text = message.content.strip() if message.role == "assistant" else message.content
        found: dict[str, Any] = {"role": message.role, "content": self.harmless(text)}
        calls = [{"name": self.harmless(c.name), "arguments": self._json(c.arguments)} for c in message.calls]
        if calls:
            found["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        if message.tools:
            found["tools"] = self._json(message.tools)
        return found

    def _json(self, text: str) -> Any:
        """A JSON value without special tokens inside its strings."""
        return json.loads(self.harmless(text))

    def harmless(self, text: str) -> str:
        """The text with special tokens inside it broken up: it cannot open or close anything."""
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _render(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = False, think: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{key: value for key, value in message.items() if key != "tools"} for message in messages],
                    tools=messages[0].get("tools"),
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=answer,
                    enable_thinking=think,
                )
            )
        except Exception as error:  # a template is a program from a file: whatever it raises is its own finding
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TemplateError(
                f"chat template: refused roles {[m['role'] for m in messages]} ({first}); "
                "drop the system turn or use a model whose template takes these roles"
            ) from error

    def _span(self, clean: Sequence[Mapping[str, Any]], turn: int, full: str) -> tuple[int, int]:
        """Character range of one assistant turn and its end marker in the rendered chat."""
        # How calls are written is the template's own affair; only where the turn ends can be told.
        upto = self._render(clean[: turn + 1]).rstrip() if "tool_calls" in clean[turn] else ""
        content = clean[turn]["content"]
        body = self._lead + content + self._end
        # Thinking templates write thoughts in their own way, and drop them from earlier turns.
        said = content.rpartition("</think>")[2].strip() + self._end
        for think in (False, True):
            start = len(prefix := self._render(clean[:turn], answer=True, think=think))
            if not full.startswith(prefix):
                continue
            if upto and full.startswith(upto) and upto.endswith(self._end):
                return start, len(upto)
            if not upto and full.startswith(body, start):
                return start, start + len(body)
            at = full.find(said, start) if "</think>" in content else -1
            if at >= 0 and THOUGHTS.fullmatch(full, start, at):
                return start, at + len(said)
        raise TemplateError(
            f"chat template: turn {turn + 1} cannot be found again in the rendered chat; "
            "the template rewrites earlier turns, use one that appends"
        )

    def _find_end(self) -> tuple[str, str]:
        """The space before an assistant's content and the text that closes its turn, from a probe chat."""
        asked = [{"role": "user", "content": "q"}]
        prefix = self._render(asked, answer=True)
        full = self._render([*asked, {"role": "assistant", "content": "zq"}])
        lead, found, end = full.removeprefix(prefix).partition("zq")
        if not full.startswith(prefix) or not found or lead.strip():
            raise TemplateError("chat template: an answer does not follow its prompt; use a template that appends")
        if not end.strip():
            raise TemplateError(
                "chat template: nothing closes an assistant turn, so stopping could not be learned; "
                "add the end token after the assistant's content"
            )
        return lead, end.rstrip()

    def _close(self) -> list[int]:
        """The ids of the text that closes a turn."""
        ids: list[int] = self.tokenizer(self._end, add_special_tokens=False)["input_ids"]
        if len(ids) > 1 and ids[-1] not in special_ids(self.tokenizer):
            raise TemplateError(
                f"chat template: {self._end!r} closes an assistant turn, and this tokenizer reads it as "
                f"{len(ids)} ordinary tokens; close it with the end token"
            )
        return ids

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a rendered chat, with exactly one BOS where the model has one."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
        if self._bos is not None:
            while ids[:2] == [self._bos, self._bos]:
                ids, offsets = ids[1:], offsets[1:]
            if ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
        return ids, offsets
