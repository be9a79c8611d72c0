"""Continued pre-training on the texts of a field: next tokens (decoder) or masked words (encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tunesmith.data.examples.parsers import texts
from tunesmith.data.examples.types import Example, Text
from tunesmith.data.readers.row import Row, columns_of
from tunesmith.data.schema.formats import DOCUMENTS, detect
from tunesmith.data.text.domain_terms import field_terms, word_places
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.windows import windows
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces

if TYPE_CHECKING:
    from torch import nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy


class Domain(Objective, Learner):
    """Lower the loss of a field's texts, without labels.

    Documents are cut into windows of `data.max_tokens`. Decoder: negative log-likelihood of every next token,
    including the end of each document. Encoder: of the tokens of masked words, through a masked-LM head; 15 % of the
    words, sampled again in each epoch (Devlin et al. 2018, arXiv 1810.04805).

    Source: Gururangan et al. 2020, "Don't stop pretraining", arXiv 2004.10964.
    """

    produces: ClassVar[Produces] = "likelihood"
    results: ClassVar[str] = "texts without prompts"
    column_keys: ClassVar[tuple[str, ...]] = ("text",)
    route: ClassVar[str] = "v1/completions"
    scores_are_shares: ClassVar[bool] = False
    no_controls: ClassVar[str] = "texts have no labels to shuffle"
    unsuited: ClassVar[str] = (
        "TF-IDF and a probe predict labels, not the words of a text; encoder and decoder can both learn a domain"
    )
    instruction: ClassVar[str] = ""
    max_new_tokens: ClassVar[int] = 0
    reads_large_files: ClassVar[bool] = True

    kind: Literal["domain"] = "domain"
    text: str = Field("", description="column with the text; empty: detected")
    hide: float = Field(0.15, gt=0, lt=1, description="share of the words that are masked, encoder only")
    terms: tuple[str, ...] = Field((), description="domain terms whose prediction is scored; empty: from the texts")
    metric: Literal["auto", "perplexity", "masked_loss"] = Field("auto", description="headline; set from the model")

    @property
    def masked_share(self) -> float:
        """Return the share of words that are masked."""
        return self.hide

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the column of the text."""
        return {"text": self.text or text_column(rows)}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into texts."""
        return list(texts(rows, **(columns or self.columns(rows)), group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Domain:
        """Return the objective with the metric of the model family and the domain terms of the texts.

        Raises:
            DataError: a term of the recipe cannot be scored.
        """
        for term in self.terms:
            if [word for word, _, _ in word_places(term)] != [term.casefold()]:
                raise DataError(
                    f"objective.terms: {term!r} is not a word that is scored; list words of at least four letters"
                )
        terms = tuple(term.casefold() for term in self.terms)
        terms = terms or field_terms(example.text for example in examples if isinstance(example, Text))
        return self.model_copy(
            update={"metric": "perplexity" if family == "decoder" else "masked_loss", "terms": terms}
        )

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode a document as one row that holds all of its windows."""
        rows = self.encode_all(example, template, limit=limit)
        return Encoded(tuple(row.sequences[0] for row in rows), example.where)

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode a document as one row per window, named by the index of the window."""
        assert isinstance(example, Text)
        return [
            window.row(f"{example.where} window {index}", next_token=template.chats)
            for index, window in enumerate(windows(example.text, template, limit=limit), 1)
        ]

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a masked-LM head for an encoder; a decoder uses its own output layer."""
        from tunesmith.models.mlm_head import MaskedHead

        return MaskedHead(policy.network).to(policy.device) if policy.family == "encoder" else None

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood of the next or masked tokens, summed over the batch in nats."""
        if policy.family == "decoder":
            return Loss(policy.sum_nll(batch), self.units(batch))
        from tunesmith.models.mlm_head import MaskedHead

        assert isinstance(policy.head, MaskedHead)
        return Loss(policy.head.sum_nll(policy.learned(batch), batch.targets), self.units(batch))


def text_column(rows: Sequence[Row]) -> str:
    """Return the column with the text: by name even if other columns suggest another objective."""
    by_name = {name.strip().lower(): name for name in columns_of(rows)}
    named = next((by_name[name] for name in DOCUMENTS if name in by_name), "")
    return named or detect(rows).columns.get("text", "text")
