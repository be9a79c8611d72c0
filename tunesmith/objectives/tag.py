"""Token classification: a linear head marks labelled spans of a text.

Letters: M tokens that are answered, D size of a hidden state, K tags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.data.examples.spans import OUTSIDE, spans_of, tags_of
from tunesmith.data.examples.spans import tagged as parse
from tunesmith.data.examples.types import Example, Span, TaggedText
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.formats import span_columns
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.span_tokens import TextTokens
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces, Reader, zero_head
from tunesmith.objectives.classify import in_order, laplace_logit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# Share of the words with a span in which a span may begin or end, and spans are still of whole words.
MOST_CUT = 0.01
PROBE_STRENGTH = 0.1  # C of logistic regression: nine of ten tokens have no label, so a smaller one finds none


class Tag(Objective, Learner):
    """Mark the spans of a text, each with a label.

    Reads rows with a text and spans by character, or words with BIO tags. Every token gets one of the tags O, B-LABEL
    and I-LABEL by a linear layer over its state; the loss is the cross-entropy, summed over tokens. A text that is
    longer than `data.max_tokens` is read in overlapping windows, and each token is answered in the one where it has the
    most context. Spans cannot overlap.

    Source: Ramshaw and Marcus 1995, "Text Chunking using Transformation-Based Learning", for the tags.
    """

    produces: ClassVar[Produces] = "spans"
    families: ClassVar[tuple[str, ...]] = ("encoder",)  # a decoder knows nothing of the words after a token
    results: ClassVar[str] = "spans"
    column_keys: ClassVar[tuple[str, ...]] = ("text", "spans", "words", "tags")
    optional_columns: ClassVar[tuple[str, ...]] = ("spans", "tags")
    route: ClassVar[str] = "answer"
    hub_task: ClassVar[str] = "token-classification"
    reads_texts: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True
    saved_whole: ClassVar[bool] = True
    exported: ClassVar[str] = "spans"
    export_form: ClassVar[str] = "tag text"
    probes_base: ClassVar[bool] = True
    # With 246 rows, validation F1 still rose in the sixth epoch.
    least_steps: ClassVar[int] = 400
    most_epochs: ClassVar[int] = 10
    prefers_encoder: ClassVar[bool] = True
    unsuited: ClassVar[str] = "each token needs the words after it, which only an encoder reads"
    python_use: ClassVar[str] = 'print({model}.answers(["{text}"])[0]["spans"])'
    instruction: ClassVar[str] = ""
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["tag"] = "tag"
    text: str = Field("", description="column with the text; empty: detected")
    spans: str = Field("", description="column with the spans; empty: detected")
    words: str = Field("", description="column with a list of words, instead of a text; empty: detected")
    tags: str = Field("", description="column with the BIO tags of the words; empty: detected")
    metric: Literal["entity_f1"] = Field("entity_f1", description="headline score")
    labels: tuple[str, ...] = Field((), description="all labels, in order; empty: from the rows")
    aggregation: Literal["auto", "first", "simple"] = Field(
        "auto", description="a word has the tag of its first token, or each token its own; auto: by the rows"
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for number, label in enumerate(labels):
            if label in labels[:number] or label != label.strip() or label in ("", OUTSIDE):
                raise ValueError(f"label {label!r}: list each label once, without spaces around it; not {OUTSIDE!r}")
        return labels

    @model_validator(mode="after")
    def _one_kind_of_columns(self) -> Self:
        if (self.text or self.spans) and (self.words or self.tags):
            raise ValueError("name columns of a text and its spans, or of words and their tags, not both")
        return self

    @property
    def all_tags(self) -> tuple[str, ...]:
        """Return the tags in the order of the head's outputs, [K]."""
        return (OUTSIDE, *(f"{begin}-{label}" for label in self.labels for begin in "BI"))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the tags in the order of the head's outputs."""
        return self.all_tags

    def export_settings(self, *, chats: bool) -> dict[str, Any]:
        """Return the aggregation, the pipeline's `aggregation_strategy`."""
        return {"aggregation": self.aggregation}

    @property
    def starts_from_probe(self) -> bool:
        """Return that the layer starts as a linear probe: from zeros, rare labels are learned last."""
        return True

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of text and spans, or of words and tags. Raises DataError if they cannot be detected."""
        named = {role: getattr(self, role) for role in self.column_keys}
        if columns := span_columns(rows, **named):
            return columns
        fix = "name the columns: objective: {kind: tag, text: COLUMN, spans: COLUMN}, or words and tags"
        raise DataError(f"{file_of(rows)}: no spans were detected next to a text; {fix}")

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into texts with spans."""
        return list(parse(rows, columns=columns or self.columns(rows), group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Tag:
        """Return the objective with the labels of the rows.

        Raises:
            DataError: no row has a span, or one has a label that the recipe does not list.
        """
        rows = [example for example in examples if isinstance(example, TaggedText)]
        found = sorted({span.label for row in rows for span in row.spans})
        if not found:
            raise DataError(f"{file_of(rows)}: no span in {len(rows)} rows; tag needs rows with spans")
        labels = self.labels or tuple(found)
        for row in rows if set(found) - set(labels) else ():
            if unknown := {span.label for span in row.spans} - set(labels):
                raise DataError(f"{row.where}: label {min(unknown)!r} is not among {list(labels)}; add it to `labels`")
        return self.model_copy(update={"labels": labels})

    def bind_encoded(self, train: Sequence[Encoded]) -> Tag:
        """Return the objective with the aggregation that the training rows allow: by words if spans cut none."""
        if self.aggregation != "auto":
            return self
        words: dict[tuple[str, int], list[int]] = {}
        for row in train:
            for word, (_, tag) in zip(row.words, row.hidden, strict=True):
                words.setdefault((row.where, word), []).append(tag)
        spans = [tags for tags in words.values() if any(tags)]
        # The tags of B and I alternate after that of O, so that a word in a span is B I I ... or I I I ...
        cut = sum(any(b != a + a % 2 for a, b in pairwise(tags)) or not tags[0] for tags in spans)
        return self.model_copy(update={"aggregation": "simple" if cut > MOST_CUT * len(spans) else "first"})

    def template_notes(self, examples: Sequence[Example], template: Template) -> list[str]:
        """Return a note if the tokenizer reads capital letters of spans as small ones."""
        found = [e.text[s.start : s.end] for e in examples if isinstance(e, TaggedText) for s in e.spans]
        capital = [text for text in found if text != text.lower()]
        if not capital or self._ids(capital, template) != self._ids([text.lower() for text in capital], template):
            return []
        return [
            f"{len(capital)} of {len(found)} spans have capital letters, which the tokenizer of the model reads as "
            "small ones; a model with case may find more of them"
        ]

    @staticmethod
    def _ids(texts: list[str], template: Template) -> list[list[int]]:
        ids: list[list[int]] = template.tokenizer(texts, verbose=False)["input_ids"]
        return ids

    def encoded_notes(
        self, examples: Sequence[Example], rows: Sequence[Encoded], template: Template, *, limit: int
    ) -> list[str]:
        """Return a note on spans that no tags of tokens mark: they end inside one, or with a lone accent."""
        cut, total = [], 0
        for example in examples:
            assert isinstance(example, TaggedText)
            tokens = TextTokens.of(example.text, template)
            marked = {span for span, _ in self.marked(tokens, tags_of(example.spans, tokens.pieces, example.text))}
            total += len(example.spans)
            cut += [example.where for span in example.spans if span not in marked]
        if not cut:
            return []
        return [
            f"{len(cut)} of {total} spans do not begin and end with tokens, first in {cut[0]}; whole tokens are marked"
        ]

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode a text as one row that holds all of its windows."""
        rows = self.encode_all(example, template, limit=limit)
        return Encoded(tuple(row.sequences[0] for row in rows), example.where)

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode a text as a row for each window, with the tag of each token."""
        assert isinstance(example, TaggedText)
        tokens = TextTokens.of(example.text, template)
        number = {tag: index for index, tag in enumerate(self.all_tags)}
        tags = [number[tag] for tag in tags_of(example.spans, tokens.pieces, example.text)]
        return tokens.rows(template, example.where, limit=limit, targets=tags)

    def marked(self, tokens: TextTokens, tags: Sequence[str]) -> list[tuple[Span, list[int]]]:
        """Return the spans that the tags of the tokens mark, each with the tokens that decide it.

        These are the spans of transformers' pipeline with the same `aggregation_strategy`, except as in `spans_of`.

        Args:
            tokens: a text.
            tags: tag of each token, [T].
        """
        firsts = list(range(len(tags)))
        pieces = tokens.pieces
        if self.aggregation == "first":
            firsts = [i for i in firsts if not i or tokens.words[i] != tokens.words[i - 1]]
            lasts = [*(i - 1 for i in firsts[1:]), len(tags) - 1]
            pieces = [(tokens.pieces[i][0], tokens.pieces[j][1]) for i, j in zip(firsts, lasts, strict=False)]
        found = spans_of([tags[i] for i in firsts], pieces, tokens.text)
        return [(span, firsts[part]) for span, part in found]

    def answers(self, texts: Sequence[str], model: Reader) -> list[dict[str, Any]]:
        """Return the `spans` of each text, in order, each with its text and the mean probability of its tags."""
        read = [TextTokens.of(text, model.template) for text in texts]
        head = model.policy.head
        assert head is not None
        answers = []
        for tokens, (tags, scores) in zip(read, self.tagged(read, model, head), strict=True):
            spans = [
                {**span._asdict(), "text": tokens.text[span.start : span.end], "score": mean(scores[i] for i in chosen)}
                for span, chosen in self.marked(tokens, tags)
            ]
            answers.append({"spans": spans})
        return answers

    def tagged(
        self, read: Sequence[TextTokens], model: Reader, layer: Callable[[Tensor], Tensor]
    ) -> list[tuple[list[str], list[float]]]:
        """Return the likeliest tag of each token of each text, and its probability.

        Args:
            read: the texts. Long ones are read in windows.
            model: computes the states.
            layer: maps states [N, D] to logits [N, K].
        """

        def best(batch: Batch) -> Tensor:
            found = layer(model.policy.states(batch)).float().softmax(dim=1).max(dim=1)
            pairs = torch.stack((found.indices.float(), found.values), dim=1)[batch.row_index.clamp(min=0)]
            return F.pad(pairs, (0, 0, 0, width - pairs.shape[1]))  # [B, L, 2] -> [B, width, 2]

        import torch
        import torch.nn.functional as F

        rows = [tokens.rows(model.template, "", limit=model.limit) if tokens.ids else [] for tokens in read]
        windows = [window for text in rows for window in text]
        width = max((len(window.sequences[0].ids) for window in windows), default=0)  # of the longest one
        outputs = iter(model.outputs([window.sequences[0] for window in windows], best) if windows else ())
        names = self.all_tags
        results = []
        for text in rows:
            found = [(next(outputs), [position for position, _ in window.hidden]) for window in text]
            pairs = [pair for output, positions in found for pair in output[positions].tolist()]
            results.append(([names[int(index)] for index, _ in pairs], [score for _, score in pairs]))
        return results

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a zero-initialized layer [M, D] -> [M, K]; `training.head_init` initializes it from a probe."""
        return zero_head(policy, outputs=len(self.all_tags))

    def probe_head(
        self, states: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fit weight [K, D] and bias [K] to the states of tokens [N, D]; tags without a token get a low bias."""
        from tunesmith.metrics.baselines import fit_linear

        tags = [self.all_tags[int(tag)] for tag in targets[:, 0]]
        fit = fit_linear(states, tags, tries=False, strength=PROBE_STRENGTH)
        return in_order(fit, self.all_tags, unseen=-laplace_logit(len(tags)))

    @property
    def predicts_classes(self) -> bool:
        """Return that each token has one tag."""
        return True

    def logits(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the logits of the tags, [M, K]."""
        assert policy.head is not None
        logits: Tensor = policy.head(policy.learned(batch)).float()
        return logits

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood of the tags, summed over tokens in nats."""
        import torch.nn.functional as F

        return Loss(F.cross_entropy(self.logits(batch, policy), batch.targets, reduction="sum"), self.units(batch))
