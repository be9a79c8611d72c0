"""Answers that hold to a JSON schema: before each token, which tokens the schema lets through.

llguidance reads the schema and keeps track; here its mask is laid over our own logits. Letters: V words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.template import Template
from tunesmith.errors import TunesmithError, briefly

MOST_CHARACTERS = 32_768


class GrammarError(TunesmithError):
    """A schema cannot be followed, or the library for it is not installed."""


class Grammar:
    """A tokenizer as the schemas see it; made once, some tenths of a second."""

    def __init__(self, template: Template, *, words: int) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise GrammarError("response_format: needs the extra: pip install 'tunesmith[serve]'") from error
        self._words = words
        tokenizer: Any = template.tokenizer
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=words, eos_token=sorted(template.stop_ids))

    def follow(self, schema: Mapping[str, Any]) -> Follower:
        """What keeps one answer to this schema. Raises GrammarError for a schema that is none."""
        from llguidance import LLMatcher

        text = json.dumps(schema)
        if len(text) > MOST_CHARACTERS:
            raise GrammarError(f"schema: {len(text)} characters, at most {MOST_CHARACTERS} are read; write less")
        try:
            # One space after a comma or colon and no other: small models never stop writing blanks where they may.
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise GrammarError(f"schema: {briefly(error)}; write a JSON schema") from error
        matcher = LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise GrammarError(f"schema: {briefly(matcher.get_error())}; leave that keyword out")
        return Follower(matcher, self._words)


class Follower:
    """One answer under its schema."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher = matcher
        self._bits = torch.zeros((words + 31) // 32, dtype=torch.int32)

    def mask(self, logits: Tensor) -> None:
        """Take the words that cannot come next out of [V], in place."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        open_ = (self._bits[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        logits.masked_fill_(open_.flatten()[: len(logits)].to(logits.device) == 0, -torch.inf)

    def take(self, token: int) -> bool:
        """Go on by one word, and whether the answer is whole now and nothing may follow.

        Raises GrammarError where the words of this model cannot write what the schema wants next.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise GrammarError("response_format: this model has no words for what the schema wants; ask for other text")
        return bool(self._matcher.is_stopped())
