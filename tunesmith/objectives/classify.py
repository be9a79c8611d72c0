"""Label texts. A decoder answers with the label's own words, or through a linear head; an encoder through the head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from tunesmith.data.examples.parsers import labelled
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.readers.row import Row, as_word
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces

# Plain ways to ask the untuned model, beside the recipe's own instruction; the best on validation is the base's score.
WORDINGS = (
    "Classify the text as one of: {labels}. Answer with the label only.\n\nText: {text}",
    "Text: {text}\n\nWhich label fits this text: {labels}?",
    "{text}\n\nIs this text {either}?",
)


# So many labels that are all numbers with a fraction are scores.
NUMBER, MOST_NUMBERS = re.compile(r"[-+]?\d*[.,]\d+"), 20

# Learning rate of labels as a fraction of the technique's own, and the steps up to which LoRA needs all of it.
LEAST_RATE_SCALE = 0.3
FULL_RATE_STEPS = 24


class Classify(Objective):
    """Raise the probability of the right label.

    Reads Labelled rows. With `words` the label is the assistant's answer and the loss is the mean
    negative log-likelihood of its tokens and the end token, over the whole vocabulary, so that the
    tuned model *says* the label in any program. With `linear` it is cross-entropy over the labels
    (several labels per row: binary cross-entropy each). Balanced, the log of each label's share is
    added to its logit while learning, so that the head alone answers as if all labels were equally
    common (Menon et al. 2021, "Long-tail learning via logit adjustment", eq. 10).
    """

    produces: ClassVar[Produces] = "labels"
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["classify"] = "classify"
    text: str = Field("", description="column with the text; empty: detected")
    label: str = Field("", description="column with the label, or a list of labels; empty: detected")
    instruction: str = Field("", description="what a decoder is asked; empty: made from the labels")
    output: Literal["auto", "words", "linear"] = Field("auto", description="label words or a head of its own")
    metric: Literal["auto", "accuracy", "macro_f1", "sample_f1"] = Field("auto", description="headline score")
    labels: tuple[str, ...] = Field((), description="all labels, in order; empty: from the rows")
    multi: bool = Field(False, description="several labels per row; set from the data")
    balance: Literal["auto", True, False] = Field("auto", description="let rare labels count as much as common ones")
    shares: tuple[float, ...] = Field((), description="each label's share of the training rows, when balanced")

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """Labels as rows have them: 1 and true are words. Raises ValueError for one that stands twice."""
        if not isinstance(value, list | tuple):
            return value
        words = [item if (word := as_word(item)) is None else word.strip() for item in value]
        if twice := [word for i, word in enumerate(words) if word in words[:i]]:
            raise ValueError(f"{twice[0]!r} stands twice; name each label once")
        return words

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part."""
        found = {} if self.text and self.label else detect(rows).columns
        return {"text": self.text or found.get("text", "text"), "label": self.label or found.get("label", "label")}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Labelled texts, one per row."""
        return list(labelled(rows, **(columns or self.columns(rows)), group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Classify:
        """Labels from the rows, the output from family and labels, the headline from their balance.

        Raises DataError when there are fewer than two labels, or a row has one that the recipe does not list.
        """
        rows = [example for example in examples if isinstance(example, LabelledText)]
        counts = Counter(label for row in rows for label in row.labels)
        labels = self.labels or tuple(sorted(counts))
        place = rows[0].where.rpartition(":")[0]
        if len(labels) < 2:
            only = labels[0] if labels else "none"
            raise DataError(f"{place}: only one label ({only!r}) in {len(rows)} rows; classify needs two or more")
        if not self.labels and len(labels) > MOST_NUMBERS and all(map(NUMBER.fullmatch, labels)):
            found = f"{len(labels)} labels, all numbers such as {labels[1]}: these look like scores, which are not read"
            raise DataError(f"{place}: {found}; cut them into classes, or name all of them in objective.labels")
        for row in rows:
            if unknown := set(row.labels) - set(labels):
                raise DataError(f"{row.where}: label {min(unknown)!r} is not among {list(labels)}; add it to `labels`")
        multi = self.multi or any(row.multi for row in rows)
        output = self.output if self.output != "auto" else ("linear" if multi or family == "encoder" else "words")
        rare = min(counts.get(label, 0) for label in labels) < 0.25 * max(counts.values(), default=0)
        by_data = "sample_f1" if multi else "macro_f1" if rare else "accuracy"
        metric = by_data if self.metric == "auto" else self.metric
        return self.model_copy(update={"labels": labels, "multi": multi, "output": output, "metric": metric})

    def weighed(self, train: Sequence[Encoded]) -> Classify:
        """The objective with each label's share of the training rows, where they are to be balanced."""
        wanted = self.metric == "macro_f1" if self.balance == "auto" else self.balance
        if not wanted or self.multi or self.output == "words":
            return self.model_copy(update={"shares": ()})
        counts = [1 + sum(row.label[place] for row in train) for place in range(len(self.labels))]
        return self.model_copy(update={"shares": tuple(count / sum(counts) for count in counts)})

    @property
    def label_mode(self) -> Literal["single", "multi"]:
        """Return `multi` if a row may have several labels."""
        return "multi" if self.multi else "single"

    @property
    def has_label_head(self) -> bool:
        """Return whether a linear head over the states produces the labels."""
        return self.output != "words"

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return the fraction of the technique's learning rate at which a decoder learns labels.

        At the full learning rate, classifiers are no more accurate, some runs diverge, and more general ability is
        lost. LoRA over unquantized weights is the exception: runs of up to 24 steps need the full rate, longer runs
        proportionally less (rate x steps is constant, floor 0.3). Measured in docs/explanation/defaults.md.
        """
        if family == "encoder" or not plain_weights:
            return 1.0
        return min(1.0, max(LEAST_RATE_SCALE, FULL_RATE_STEPS / steps)) if adapter else LEAST_RATE_SCALE

    @property
    def probe_metric(self) -> str:
        """Name the metric by which probes and TF-IDF baselines choose their settings."""
        return "accuracy" if self.metric == "accuracy" else "macro_f1"

    def messages(self, text: str, wording: str = "") -> list[Message]:
        """What a decoder is asked about one text, by the recipe's instruction or by another wording."""
        if wording:
            listed = {"labels": ", ".join(self.labels), "either": " or ".join(self.labels)}
            question = wording.replace("{labels}", listed["labels"]).replace("{either}", listed["either"])
            return [Message("user", question.replace("{text}", text))]
        default = f"Which label fits the text: {', '.join(self.labels)}? Answer with the label only."
        return [Message("user", f"{self.instruction or default}\n\n{text}")]

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Question and label as a chat (`words`), the question alone (decoder head), or the text alone (encoder)."""
        assert isinstance(example, LabelledText)
        if self.output == "words":
            asked = [*self.messages(example.text), Message("assistant", example.labels[0])]
            asked, shortened = template.fit(asked, limit)
            return Encoded((template.chat(asked),), example.where, shortened=shortened)
        tokens, shortened = self.question(example.text, template, limit=limit)
        target = tuple(1.0 if label in example.labels else 0.0 for label in self.labels)
        return Encoded((tokens,), example.where, label=target, shortened=shortened)

    def question(self, text: str, template: Template, *, limit: int) -> tuple[Tokens, bool]:
        """The ids that are read before a label is given, and whether the text was shortened."""
        if not template.chats:
            text = template.harmless(text)
            whole = template.document(text).ids
            return Tokens.of(template.shortened(whole, limit)), len(whole) > limit
        asked, shortened = template.fit(self.messages(text), limit)
        ids = template.prompt(asked)
        return Tokens.of(ids), shortened

    def beside_text(self, template: Template) -> int:
        """Tokens of a row that are not its text: the question to a decoder, and the longest label as its answer."""
        if not template.chats:
            return 0
        asked = self.messages("")
        if self.output != "words":
            return len(template.prompt(asked))
        return len(template.chat([*asked, Message("assistant", max(self.labels, key=len))]).ids)

    def head(self, policy: Policy) -> nn.Module | None:
        """[B, D] -> [B, K], at zero: a run gives it its beginning (training/head_init.py)."""
        if self.output == "words":
            return None
        layer = nn.Linear(policy.hidden, len(self.labels), device=policy.device)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch as it is."""
        return batch

    def units(self, batch: Batch) -> int:
        """Learned tokens with label words, rows with a head."""
        return len(batch.targets) if self.output == "words" else batch.rows

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Sum of -log p of the label tokens, or of the labels."""
        if self.output == "words":
            return Loss(policy.sum_nll(batch), self.units(batch))
        assert batch.labels is not None
        logits = self.logits(batch, policy)
        if self.multi:
            return Loss(F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum"), len(logits))
        return Loss(F.cross_entropy(logits, batch.labels.argmax(dim=1), reduction="sum"), len(logits))

    def logits(self, batch: Batch, policy: Policy) -> Tensor:
        """[B, K]: the head's logits as they are learned, with the log of each label's share added when balanced."""
        assert policy.head is not None
        logits = cast(Tensor, policy.head(policy.pooled(batch))).float()
        return logits + logits.new_tensor(self.shares).log() if self.shares else logits
