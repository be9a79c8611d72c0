"""Share of a text that a tokenizer does not represent, without loading a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

UNKNOWN = ("[UNK]", "<unk>")
TEXTS, CHARACTERS = 200, 500


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
