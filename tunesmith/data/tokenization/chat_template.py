"""Chats and texts as token ids: a tokenizer with its chat template, and the tokens that are learned.

A template without tool support gets tool offers, calls and results as plain text in the Hermes format.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tokenizer import chat_source, frame, leading_bos, special_ids, special_tokens
from tunesmith.data.tokenization.tool_calls import Call, as_words, calls_in
from tunesmith.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OFFER = (
    "You may call these tools:\n<tools>\n{tools}\n</tools>\n"
    'Call one with its name and arguments as JSON: <tool_call>\n{{"name": ..., "arguments": {{...}}}}\n</tool_call>'
)
RESULT = "<tool_response>\n{content}\n</tool_response>"


def in_words(messages: Sequence[Message]) -> list[Message]:
    """Render tools, calls and results into the contents of the messages; results become user turns."""
    rendered: list[Message] = []
    for message in messages:
        content = message.content
        if message.tools:
            offer = OFFER.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in json.loads(message.tools)))
            content = f"{content}\n\n{offer}" if message.role == "system" else f"{offer}\n\n{content}"
        if message.calls:
            content = "\n".join(filter(None, [content, as_words(message.calls)]))
        if message.role == "tool":
            result = RESULT.format(content=content)
            if rendered and rendered[-1].role == "user":  # several results in one turn
                rendered[-1] = replace(rendered[-1], content=f"{rendered[-1].content}\n{result}")
                continue
            message, content = replace(message, role="user"), result
        rendered.append(Message(message.role, content))
    return rendered


# A probe chat with every part of tool use; each part contains a word that can be found in the rendered text.
TOOL_PROBE = (
    Message("user", "q", tools=json.dumps([{"type": "function", "function": {"name": "zqtool", "parameters": {}}}])),
    Message("assistant", "", (Call("zqcall", json.dumps({"zqkey": 1})),)),
    Message("tool", "zqresult"),
    Message("assistant", "zq"),
)
TOOL_WORDS = ("zqtool", "zqresult")
# White space, and thoughts if there are any, between the generation prompt and an answer.
THOUGHTS = re.compile(r"\s*(<think>.*</think>\s*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and their loss mask.

    Attributes:
        ids: token ids, [T].
        learn: whether each id is a target of the loss, [T].
    """

    ids: list[int]
    learn: list[bool]

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int] = ()) -> Tokens:
        """Join a prompt and its answer; only the answer is learned.

        Args:
            prompt: ids of the prompt.
            answer: ids of the answer.
        """
        return cls([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))

    @property
    def learned(self) -> int:
        """Number of learned tokens."""
        return sum(self.learn)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token sequences: one for most objectives, two for a pair, one per window of a document.

    Attributes:
        sequences: token sequences with their loss masks.
        where: location of the row.
        label: targets of a classification head, one per class, or the score of a reward model.
        shortened: whether text was cut to fit the token limit.
        words: for masked language models, the word index of each id, [T]; -1: no word.
        hidden: for masked language models, (index, original id) of each masked token.
        reference: summed log-probability of the learned tokens of each sequence under the reference model, nats.
        asks: whether completions are sampled from this prompt during training.
    """

    sequences: tuple[Tokens, ...]
    where: str
    label: tuple[float, ...] = ()
    shortened: bool = False
    words: tuple[int, ...] = ()
    hidden: tuple[tuple[int, int], ...] = ()
    reference: tuple[float, ...] = ()
    asks: bool = False  # if true, the row is used although it has no learned tokens

    @property
    def length(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(len(tokens.ids) for tokens in self.sequences)

    @property
    def size(self) -> int:
        """Number of tokens of all sequences when padded to the longest."""
        return self.length * len(self.sequences)


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
        self._behind = frame(tokenizer)[1]
        self.chats = chat
        self._lead, self._end = self._find_end() if chat else ("", "")
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
        return ids if len(ids) <= limit else [*ids[: limit - len(self._behind)], *self._behind]

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """Encode a chat. Assistant turns and their end tokens are learned, nothing else."""
        full, spans = self._learned(self._ready(messages))
        ids, offsets = self._encode(full)
        return Tokens(ids, [any(a < end and b > start for start, end in spans) for a, b in offsets])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Encode the messages and the generation prompt, after which the assistant answers."""
        return self._encode(self._render(self._ready(messages), answer=True))[0]

    def answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """Encode one answer to `messages`, without the end of the turn."""
        tokens = self.chat([*messages, Message("assistant", text)])
        start = len(self.prompt(messages))
        return tokens.ids[start : start + sum(tokens.learn[start:]) - len(self.end_ids)]

    def fit(self, messages: Sequence[Message], limit: int) -> tuple[list[Message], bool]:
        """Shorten messages to `limit` tokens; return them and whether one was shortened.

        The longest turn that is not an assistant turn is cut at its end, so that answers stay complete. Messages that
        end with a prompt are counted with the generation prompt.
        """
        fitted, shortened = list(messages), False
        while (over := self._length(fitted) - limit) > 0:
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

    def _length(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a chat, or of a prompt if it does not end with an answer."""
        return len(self._encode(self._render(self._ready(messages), answer=messages[-1].role != "assistant"))[0])

    def _cut(self, content: str, over: int) -> str:
        """Remove the last `over` tokens of a text, keeping at least its first character."""
        encoding = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in encoding["offset_mapping"]]
        keep = max(1, len(starts) - over)
        end = starts[keep] if keep < len(starts) else len(content)
        return content[:end].rstrip() or content[:1]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ready(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages for the template; tools become text if it does not support them as JSON."""
        tools = any(message.tools or message.calls for message in messages)
        return [self._clean(m) for m in (in_words(messages) if tools and not self._takes_tools else messages)]

    @cached_property
    def _takes_tools(self) -> bool:
        """True if the template renders tools and results, and calls in a form that `calls_in` can parse."""
        try:
            full, spans = self._learned([self._clean(message) for message in TOOL_PROBE])
        except TemplateError:
            return False
        # Some templates write calls as XML, which can be neither scored nor served.
        called = calls_in(full[slice(*spans[0])]) == [call.plain() for call in TOOL_PROBE[1].calls]
        return called and all(word in full for word in TOOL_WORDS)

    def _learned(self, clean: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """Return the rendered chat and the character range of each assistant turn."""
        full = self._render(clean)
        return full, [self._span(clean, i, full) for i, message in enumerate(clean) if message["role"] == "assistant"]

    def _clean(self, message: Message) -> dict[str, Any]:
        """Return the message with special tokens in its text broken up, so that text cannot end a turn."""
        text = message.content.strip() if message.role == "assistant" else message.content
        fields: dict[str, Any] = {"role": message.role, "content": self.harmless(text)}
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
        except Exception as error:  # a template is code from the model's files and may raise anything
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TemplateError(
                f"chat template: rejects the roles {[m['role'] for m in messages]} ({first}); "
                "drop the system turn or use a model whose template supports these roles"
            ) from error

    def _span(self, clean: Sequence[Mapping[str, Any]], turn: int, full: str) -> tuple[int, int]:
        """Return the character range of one assistant turn and its end marker in the rendered chat."""
        # The format of calls is up to the template, so only the end of such a turn can be located.
        upto = self._render(clean[: turn + 1]).rstrip() if "tool_calls" in clean[turn] else ""
        content = clean[turn]["content"]
        body = self._lead + content + self._end
        # Templates with thinking format thoughts in their own way, and drop them from earlier turns.
        answer = content.rpartition("</think>")[2].strip() + self._end
        for think in (False, True):
            start = len(prefix := self._render(clean[:turn], answer=True, think=think))
            if not full.startswith(prefix):
                continue
            if upto and full.startswith(upto) and upto.endswith(self._end):
                return start, len(upto)
            if not upto and full.startswith(body, start):
                return start, start + len(body)
            index = full.find(answer, start) if "</think>" in content else -1
            if index >= 0 and THOUGHTS.fullmatch(full, start, index):
                return start, index + len(answer)
        raise TemplateError(
            f"chat template: turn {turn + 1} cannot be located in the rendered chat because the template "
            "rewrites earlier turns; use one that appends"
        )

    def _find_end(self) -> tuple[str, str]:
        """Return the whitespace before an assistant's content and the text that ends its turn, from a probe chat."""
        prompt = [{"role": "user", "content": "q"}]
        prefix = self._render(prompt, answer=True)
        full = self._render([*prompt, {"role": "assistant", "content": "zq"}])
        lead, content, end = full.removeprefix(prefix).partition("zq")
        if not full.startswith(prefix) or not content or lead.strip():
            raise TemplateError("chat template: the answer does not follow its prompt; use a template that appends")
        if not end.strip():
            raise TemplateError(
                "chat template: assistant turns have no end marker, so the model could not learn to stop; "
                "add the end token after the assistant's content"
            )
        return lead, end.rstrip()

    def _close(self) -> list[int]:
        """Return the ids of the text that ends a turn."""
        ids: list[int] = self.tokenizer(self._end, add_special_tokens=False)["input_ids"]
        if len(ids) > 1 and ids[-1] not in special_ids(self.tokenizer):
            raise TemplateError(
                f"chat template: the tokenizer splits the end marker {self._end!r} of assistant turns into "
                f"{len(ids)} ordinary tokens; close turns with the end token"
            )
        return ids

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a rendered chat to ids and character offsets, with exactly one BOS if the model has one."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = list(encoding["input_ids"])
        offsets = list(encoding["offset_mapping"])
        if self._bos is not None:
            while ids[:2] == [self._bos, self._bos]:
                ids, offsets = ids[1:], offsets[1:]
            if ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
        return ids, offsets
