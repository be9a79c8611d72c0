"""Speak the language of a field: the next token of its texts (decoder), or words hidden in them (encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from tunesmith.data.examples.parsers import texts
from tunesmith.data.examples.types import Example, Text
from tunesmith.data.readers.row import Row, columns_of
from tunesmith.data.schema.formats import DOCUMENTS, detect
from tunesmith.data.text.domain_terms import field_terms, word_places
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.windows import windows
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces


class Domain(Objective):
    """Lower the loss of a field's own texts, without any label.

    Reads Text rows; documents are cut into windows of `data.max_tokens`. Decoder: mean negative log-likelihood of
    every next token, the end of each document included. Encoder: of the ids of whole words that are hidden, 15 % of
    them drawn anew for each pass (Devlin et al. 2018, arXiv 1810.04805), through a masked-language head.
    Continued pre-training: Gururangan et al. 2020, arXiv 2004.10964.
    """

    produces: ClassVar[Produces] = "likelihood"
    instruction: ClassVar[str] = ""
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["domain"] = "domain"
    text: str = Field("", description="column with the text; empty: detected")
    hide: float = Field(0.15, gt=0, lt=1, description="share of the words that an encoder has to find")
    terms: tuple[str, ...] = Field((), description="words of the field that are asked for; empty: found in the texts")
    metric: Literal["auto", "perplexity", "masked_loss"] = Field("auto", description="headline; set from the model")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part."""
        return {"text": self.text or text_column(rows)}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Texts, one per row."""
        return list(texts(rows, **(columns or self.columns(rows)), group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Domain:
        """The headline by the family, for a decoder predicts next tokens and an encoder hidden words; the terms."""
        for term in self.terms:
            if [word for word, _, _ in word_places(term)] != [term.casefold()]:
                raise DataError(f"objective.terms: {term!r} is asked for nowhere; give words of four letters or more")
        terms = tuple(term.casefold() for term in self.terms)
        terms = terms or field_terms(example.text for example in examples if isinstance(example, Text))
        return self.model_copy(
            update={"metric": "perplexity" if family == "decoder" else "masked_loss", "terms": terms}
        )

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """All windows of a document; `apart` makes a row of each."""
        rows = self.windows(example, template, limit=limit)
        return Encoded(tuple(row.sequences[0] for row in rows), example.where)

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode a document as one row per window."""
        return self.windows(example, template, limit=limit)

    def windows(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Each window of a document as a row, named by its place in the document."""
        assert isinstance(example, Text)
        cut = windows(example.text, template, limit=limit)
        return [
            window.row(f"{example.where} window {number}", next_token=template.chats)
            for number, window in enumerate(cut, 1)
        ]

    def head(self, policy: Policy) -> nn.Module | None:
        """A masked-language head for an encoder; a decoder has its own words."""
        return MaskedHead(policy.network).to(policy.device) if policy.family == "encoder" else None

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch as it is."""
        return batch

    def units(self, batch: Batch) -> int:
        """Learned tokens."""
        return len(batch.targets)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Sum of -log p over the next tokens, or over the hidden ids."""
        if policy.family == "decoder":
            return Loss(policy.sum_nll(batch), self.units(batch))
        assert isinstance(policy.head, MaskedHead)
        return Loss(policy.head.sum_nll(policy.learned(batch), batch.targets), self.units(batch))


def text_column(rows: Sequence[Row]) -> str:
    """The column with the text: the one of that name even where others would make another objective of the rows."""
    by_name = {name.strip().lower(): name for name in columns_of(rows)}
    named = next((by_name[name] for name in DOCUMENTS if name in by_name), "")
    return named or detect(rows).columns.get("text", "text")
