"""What a tokenizer says of itself: its chat format, its special tokens, and whether it puts one before every text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For models that never saw a chat: plain words, each turn closed by the end token.
# Line ends are written as expressions: chat templates are read with trim_blocks, which eats bare ones.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def chat_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, or the plain one, behind what the tokenizer puts before every text."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    source = str(source or PLAIN_TEMPLATE)
    writes = "bos_token" in source or str(tokenizer.bos_token) in source
    # Other programs put nothing before what a template writes.
    return source if writes or leading_bos(tokenizer) is None else "{{ bos_token }}" + source


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens, those included that have no role of their own (`<start_of_turn>`)."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern that finds special tokens in a text, None where the tokenizer has none."""
    names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id this tokenizer puts before every text, None if it puts none."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and behind every text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[:start]), list(whole[start + len(bare) :])
    return [], []


def choose_pad(tokenizer: PreTrainedTokenizerBase, *, rows: int) -> None:
    """A tokenizer that has a pad token: its own, else an unused special one, else the end token."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < rows:
        return
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    spare = [
        token.content
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in used and number < rows
    ]
    named = [token for token in spare if "pad" in token.lower()] or [
        token for token in spare if "reserved" in token.lower() or "unused" in token.lower()
    ]
    spare_unknown = [tokenizer.unk_token] if tokenizer.unk_token in spare else []
    for token in (*named, *spare_unknown, tokenizer.eos_token, *spare):
        if token:
            tokenizer.pad_token = token
            return
    # Padding is told by length everywhere here, so any word will do.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)


def homeless(tokenizer: PreTrainedTokenizerBase, *, rows: int) -> str:
    """The first token of the chat format, or the end, that an embedding of so many rows has none for."""
    source = chat_source(tokenizer)
    beyond = {token.content for number, token in tokenizer.added_tokens_decoder.items() if number >= rows}
    return next((token for token in sorted(beyond) if token in source or token == tokenizer.eos_token), "")
