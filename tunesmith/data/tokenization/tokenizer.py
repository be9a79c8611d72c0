"""Properties of a tokenizer: chat template, special tokens, what it adds to every text, and how it splits words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# For models without a chat format: role names as plain words, each answer closed by the end token.
# Line ends are expressions, because chat templates are rendered with trim_blocks, which removes bare ones.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
# Names of an unknown token, and the texts and characters of each that show how well a tokenizer fits them.
UNKNOWN = ("[UNK]", "<unk>")
TEXTS, CHARACTERS = 200, 500


def chat_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template, or the plain one, with a BOS token if the tokenizer adds one to every text."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    source = str(source or PLAIN_TEMPLATE)
    has_bos = "bos_token" in source or str(tokenizer.bos_token) in source
    # Other programs add no BOS token to a rendered template, so the template must contain it.
    return source if has_bos or leading_bos(tokenizer) is None else "{{ bos_token }}" + source


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens, including those without a role (`<start_of_turn>`)."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern that matches special tokens in a text; None if the tokenizer has none."""
    names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the BOS id if the tokenizer puts it before every text, else None."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after every text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[:start]), list(whole[start + len(bare) :])
    return [], []


def with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    """Encode a text without special tokens, with the start and end character of each token in `offset_mapping`.

    Raises:
        ModelError: the tokenizer has no offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer: {type(tokenizer).__name__} has no character offsets; use a model "
            "with tokenizer.json, or classify, regress, embed or rerank with an encoder"
        )
    encoding: BatchEncoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoding


def choose_pad(tokenizer: PreTrainedTokenizerBase, *, rows: int) -> None:
    """Set a pad token if the tokenizer has none: an unused special token, else the end token.

    Ids beyond the `rows` of the embedding matrix cannot be used.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < rows:
        return
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    spare = [
        token.content
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and index not in used and index < rows
    ]
    padding = [token for token in spare if "pad" in token.lower()] or [
        token for token in spare if "reserved" in token.lower() or "unused" in token.lower()
    ]
    spare_unknown = [tokenizer.unk_token] if tokenizer.unk_token in spare else []
    for token in (*padding, *spare_unknown, tokenizer.eos_token, *spare):
        if token:
            tokenizer.pad_token = token
            return
    # Padding is masked by length everywhere in this project, so any token works.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)


def homeless(tokenizer: PreTrainedTokenizerBase, *, rows: int) -> str:
    """Return the first token of the chat format beyond the `rows` of the embedding matrix; empty if there is none."""
    source = chat_source(tokenizer)
    beyond = {token.content for index, token in tokenizer.added_tokens_decoder.items() if index >= rows}
    return next((token for token in sorted(beyond) if token in source or token == tokenizer.eos_token), "")


def fragment_share(tokenizer: Path, texts: Sequence[str]) -> float:
    """Return the share of tokens that stand for less than a part of a word.

    These are unknown tokens, bytes of a character, and single letters that are not ASCII: none in English, a tenth in
    German, and nine tenths of a script that the tokenizer was not trained on (Chinese, Russian; bundled models). The
    tokenizer is a `tokenizer.json`, and the first 500 characters of the first 200 texts are read.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    fragments = total = 0
    for text in texts[:TEXTS]:
        encoded = encoder.encode(text[:CHARACTERS], add_special_tokens=False)
        spans = Counter(encoded.offsets)
        total += len(encoded.tokens)
        for token, (start, end) in zip(encoded.tokens, encoded.offsets, strict=True):
            letter = text[start:end].strip()
            single = len(letter) == 1 and not letter.isascii() and letter.isalpha()
            fragments += token in UNKNOWN or spans[start, end] > 1 or single
    return fragments / total if total else 0.0
