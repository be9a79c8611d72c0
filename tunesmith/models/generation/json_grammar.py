"""Generation constrained to a JSON schema: before each token, the mask of the tokens that the schema allows.

llguidance parses the schema and tracks its state; its mask is applied to our own logits. Letters: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.files import quoted
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import TunesmithError, briefly

MAX_SCHEMA_CHARACTERS = 32_768


class GrammarError(TunesmithError):
    """A schema cannot be followed, or llguidance is not installed."""


class Grammar:
    """A tokenizer prepared for schemas; make it once per model, it takes some tenths of a second.

    Args:
        template: supplies tokenizer and stop tokens.
        words: size V of the vocabulary.

    Raises:
        GrammarError: if llguidance is not installed.
    """

    def __init__(self, template: Template, *, words: int) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise GrammarError(f"response_format: needs the extra: pip install {quoted('tunesmith[serve]')}") from error
        self._words = words
        tokenizer: Any = template.tokenizer
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=words, eos_token=sorted(template.stop_ids))

    def follow(self, schema: Mapping[str, Any]) -> Follower:
        """Return the state of one completion under a schema.

        Raises:
            GrammarError: if the schema is invalid, too long, or uses an unsupported keyword.
        """
        from llguidance import LLMatcher

        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise GrammarError(
                f"schema: expected at most {MAX_SCHEMA_CHARACTERS} characters, got {len(text)}; shorten it"
            )
        try:
            # Exactly one space after a comma or colon: where white space is free, small models never stop writing it.
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise GrammarError(f"schema: {briefly(error)}; write a JSON schema") from error
        matcher = LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise GrammarError(f"schema: {briefly(matcher.get_error())}; leave that keyword out")
        matcher.compute_bitmask()
        if matcher.is_stopped():  # no token can be the first, as of a schema that only refers to itself
            raise GrammarError("schema: it allows no text at all; say which type it describes")
        return Follower(matcher, self._words)


class Follower:
    """The state of one completion under its schema."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher = matcher
        self._bits = torch.zeros((words + 31) // 32, dtype=torch.int32)

    def mask(self, logits: Tensor) -> None:
        """Set the logits [V] of tokens that cannot come next to minus infinity, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        allowed = (self._bits[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        logits.masked_fill_(allowed.flatten()[: len(logits)].to(logits.device) == 0, -torch.inf)

    def take(self, token: int) -> bool:
        """Advance by one token and return whether the completion is whole, so that nothing may follow.

        Raises:
            GrammarError: if the model's vocabulary cannot produce what the schema requires next.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise GrammarError(
                "response_format: this model's vocabulary cannot write what the schema requires; use another schema"
            )
        return bool(self._matcher.is_stopped())
