"""Classification of texts: a decoder generates the words of the label or uses a linear head, an encoder the head.

Letters: B rows of a batch, D size of a hidden state, K labels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from operator import add
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator

from tunesmith.data.examples.parsers import labelled
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.readers.row import Row, as_word
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces, zero_head
from tunesmith.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tunesmith.metrics.baselines import LinearFit
    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# Prompt templates for the base model, tried in addition to the recipe's instruction; the best one on validation is the
# score of the base.
WORDINGS = (
    "Classify the text as one of: {labels}. Answer with the label only.\n\nText: {text}",
    "Text: {text}\n\nWhich label fits this text: {labels}?",
    "{text}\n\nIs this text {either}?",
)

# More labels than this, all decimal fractions, are scores rather than labels.
MAX_DECIMAL_LABELS = 20
DECIMAL = re.compile(r"[-+]?\d*[.,]\d+")

# Part of the probe's weights and bias that a head starts from. The probe is fitted to the rows that are trained on: at
# full size little of their loss is left, and the network learns less from them (docs/decisions/0015).
HEAD_START = 0.25

# Smallest learning rate as a fraction of the technique's own, and the steps up to which LoRA needs the full rate.
LEAST_RATE_SCALE = 0.3
FULL_RATE_STEPS = 24


def head_rate_scale(family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
    """Return the fraction of the technique's learning rate at which a decoder learns labels.

    At the full learning rate, classifiers are no more accurate, some runs diverge, and more general ability is
    lost. LoRA over unquantized weights is the exception: runs of up to 24 steps need the full rate, longer runs
    proportionally less (rate x steps is constant, floor 0.3). Measured in docs/explanation/defaults.md.
    """
    if family == "encoder" or not plain_weights:
        return 1.0
    return min(1.0, max(LEAST_RATE_SCALE, FULL_RATE_STEPS / steps)) if adapter else LEAST_RATE_SCALE


class Classify(Objective, Learner):
    """Raise the probability of the right label.

    Reads rows with a text and one or several labels. With `words` the label is the assistant's answer, and the loss is
    the negative log-likelihood of its tokens and the end token over the whole vocabulary, so that the tuned model
    generates the label in any program. With `linear` the loss is cross-entropy over the labels, or binary
    cross-entropy of each label if a row may have several. If balanced, the log of each label's share is added to its
    logit during training, so that the head alone predicts as if all labels were equally common.

    Source of the balance: Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10.
    """

    produces: ClassVar[Produces] = "labels"
    results: ClassVar[str] = "labels"
    column_keys: ClassVar[tuple[str, ...]] = ("text", "label")
    optional_columns: ClassVar[tuple[str, ...]] = ("label",)
    route: ClassVar[str] = "classify"
    hub_task: ClassVar[str] = "text-classification"
    reads_texts: ClassVar[bool] = True
    probes_base: ClassVar[bool] = True
    prefers_encoder: ClassVar[bool] = True
    unsuited: ClassVar[str] = ""
    python_use: ClassVar[str] = 'print({model}.classify(["{text}"])[0])'
    exported: ClassVar[str] = "labels and probabilities"
    has_reference_answers: ClassVar[bool] = True
    reads_large_files: ClassVar[bool] = True
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["classify"] = "classify"
    text: str = Field("", description="column with the text; empty: detected")
    label: str = Field("", description="column with the label, or a list of labels; empty: detected")
    instruction: str = Field("", description="instruction before each text, decoder only; empty: made from the labels")
    output: Literal["auto", "words", "linear"] = Field("auto", description="generate label words, or use a linear head")
    metric: Literal["auto", "accuracy", "macro_f1", "sample_f1"] = Field("auto", description="headline score")
    labels: tuple[str, ...] = Field((), description="all labels, in order; empty: from the rows")
    multi: bool = Field(False, description="several labels per row; set from the data")
    balance: Literal["auto", True, False] = Field("auto", description="weigh rare labels as much as common ones")
    shares: tuple[float, ...] = Field((), description="share of each label in the training rows, if balanced")
    # Decided once for all rows: on a GPU, a step must not wait for values.
    _soft: bool = PrivateAttr(False)

    @field_validator("labels", mode="before")
    @classmethod
    def _as_words(cls, labels: object) -> object:
        """Convert labels to words as rows do (1, true); raise ValueError for a duplicate."""
        if not isinstance(labels, list | tuple):
            return labels
        words = [item if (word := as_word(item)) is None else word.strip() for item in labels]
        if duplicates := [word for i, word in enumerate(words) if word in words[:i]]:
            raise ValueError(f"duplicate label {duplicates[0]!r}; list each label once")
        return words

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of text and label."""
        detected = {} if self.text and self.label else detect(rows).columns
        return {
            "text": self.text or detected.get("text", "text"),
            "label": self.label or detected.get("label", "label"),
        }

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into labelled texts."""
        known = self.labels if self.multi else ()
        return list(labelled(rows, **(columns or self.columns(rows)), group=group, known=known))

    def for_later_rows(self, examples: Sequence[Example]) -> Classify:
        """Return the objective with several labels per row if these have them, of those that these have."""
        several = [row for row in examples if isinstance(row, LabelledText) and row.multi]
        if self.multi or not several:
            return self
        labels = self.labels or tuple(sorted({label for row in several for label in row.labels}))
        return self.model_copy(update={"labels": labels, "multi": True})

    def bind(self, examples: Sequence[Example], family: str) -> Classify:
        """Return the objective with the labels of the rows, and the output and metric that suit them.

        Raises:
            DataError: there are fewer than two labels, or a row has a label that the recipe does not list.
        """
        counts: Counter[str] = Counter()
        several = False
        for row in examples:
            if isinstance(row, LabelledText):
                counts.update(row.labels)
                several = several or row.multi
        labels = self.labels or tuple(sorted(counts))
        file = examples[0].where.rpartition(":")[0]
        if len(labels) < 2:
            only = labels[0] if labels else "none"
            raise DataError(f"{file}: only one label ({only!r}) in {len(examples)} rows; classify needs two or more")
        if not self.labels and len(labels) > MAX_DECIMAL_LABELS and all(map(DECIMAL.fullmatch, labels)):
            raise DataError(
                f"{file}: {len(labels)} labels, all decimal fractions such as {labels[1]}, look like a quantity to "
                "predict; use objective: regress, or list all of them in objective.labels"
            )
        for row in examples if set(counts) - set(labels) else ():
            if isinstance(row, LabelledText) and (unknown := set(row.labels) - set(labels)):
                raise DataError(f"{row.where}: label {min(unknown)!r} is not among {list(labels)}; add it to `labels`")
        multi = self.multi or several
        output = self.output if self.output != "auto" else ("linear" if multi or family == "encoder" else "words")
        imbalanced = min(counts.get(label, 0) for label in labels) < 0.25 * max(counts.values(), default=0)
        suited = "sample_f1" if multi else "macro_f1" if imbalanced else "accuracy"
        metric = suited if self.metric == "auto" else self.metric
        return self.model_copy(update={"labels": labels, "multi": multi, "output": output, "metric": metric})

    def bind_encoded(self, train: Sequence[Encoded]) -> Classify:
        """Return the objective with the share of each label in the training rows, if the loss is to be balanced.

        It also knows then whether any of their labels are probabilities of a teacher.
        """
        balanced = self.metric == "macro_f1" if self.balance == "auto" else self.balance
        shares: tuple[float, ...] = ()
        if balanced and not self.multi and self.output != "words":
            counts = [1.0] * len(self.labels)
            for row in train:
                counts = list(map(add, counts, row.label))
            shares = tuple(count / sum(counts) for count in counts)
        bound = self.model_copy(update={"shares": shares})
        bound._soft = self.output != "words" and any(0 < value < 1 for row in train for value in row.label)
        return bound

    def for_other_base(self, family: str, named: Collection[str]) -> Classify:
        """Return the objective with the output left to the other base model, if it was chosen by that of the run."""
        chosen = "linear" if self.multi or family == "encoder" else "words"
        if "objective.output" in named or self.output != chosen:
            return self
        return self.model_copy(update={"output": "auto"})

    @property
    def known_labels(self) -> tuple[str, ...]:
        """Return all labels in order."""
        return self.labels

    @property
    def label_mode(self) -> Literal["single", "multi"]:
        """Return `multi` if a row may have several labels."""
        return "multi" if self.multi else "single"

    @property
    def has_label_head(self) -> bool:
        """Return whether a linear head over the states produces the labels."""
        return self.output != "words"

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return the fraction of the technique's learning rate at which a decoder learns labels."""
        return head_rate_scale(family, plain_weights=plain_weights, adapter=adapter, steps=steps)

    @property
    def probe_metric(self) -> str:
        """Return the metric by which probes and TF-IDF baselines choose their settings."""
        return "accuracy" if self.metric == "accuracy" else "macro_f1"

    def messages(self, text: str, wording: str = "") -> list[Message]:
        """Return the prompt about one text: a prompt template, or the recipe's instruction if `wording` is empty."""
        if wording:
            question = wording.replace("{labels}", ", ".join(self.labels)).replace("{either}", " or ".join(self.labels))
            return [Message("user", question.replace("{text}", text))]
        default = f"Which label fits the text: {', '.join(self.labels)}? Answer with the label only."
        return [Message("user", f"{self.instruction or default}\n\n{text}")]

    def user_message(self, text: str) -> Message:
        """Return the question about one text."""
        return self.messages(text)[0]

    def prompt_messages(self, example: Example, wording: str = "") -> list[Message]:
        """Return the question about the text of a row."""
        assert isinstance(example, LabelledText)
        return self.messages(example.text, wording)

    def without_answer(self, example: Example) -> Example:
        """Return a text without its label."""
        assert isinstance(example, LabelledText)
        return replace(example, labels=())

    def with_answer(self, example: Example, answer: str) -> Example:
        """Return a text with one label."""
        assert isinstance(example, LabelledText)
        return replace(example, labels=(answer,))

    def prompt_templates(self, family: str) -> tuple[str, ...]:
        """Return the prompts of a decoder that gives one label; other base models are evaluated by a linear probe."""
        return ("", *WORDINGS) if family == "decoder" and not self.multi else ()

    def in_words(self) -> Classify:
        """Return the objective with labels as words."""
        return self.model_copy(update={"output": "words"})

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode question and label as a chat (`words`), the question alone (decoder head), or the text (encoder)."""
        assert isinstance(example, LabelledText)
        if self.output == "words":
            chat = [*self.messages(example.text), Message("assistant", example.labels[0])]
            chat, shortened = template.fit(chat, limit)
            return Encoded((template.chat(chat),), example.where, shortened=shortened)
        tokens, shortened = self.question(example.text, template, limit=limit)
        target = tuple(1.0 if label in example.labels else 0.0 for label in self.labels)
        return Encoded((tokens,), example.where, label=target, shortened=shortened)

    def fixed_tokens(self, template: Template) -> int:
        """Return the tokens of a decoder's question, and of the longest label if labels are words; 0 for an encoder."""
        if not template.chats:
            return 0
        question = self.messages("")
        if self.output != "words":
            return len(template.prompt(question))
        return len(template.chat([*question, Message("assistant", max(self.labels, key=len))]).ids)

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a zero-initialized layer [B, D] -> [B, K]; `training.head_init` initializes it from a probe."""
        if self.output == "words":
            return None
        return zero_head(policy, outputs=len(self.labels))

    def probe_head(
        self, states: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fit a probe to states [N, D] and return a part of its weight [K, D] and bias [K].

        Labels that no row has, or all rows have, get the full bias of such a label.
        """
        import numpy as np

        from tunesmith.metrics.baselines import fit_linear

        if self.multi:
            return _multi_label_probe(states, targets)
        fit = fit_linear(states, [self.labels[i] for i in targets.argmax(axis=1)], metric=self.probe_metric)
        start = replace(fit, weight=HEAD_START * fit.weight, bias=HEAD_START * fit.bias)
        weight, bias = in_order(start, self.labels, unseen=-laplace_logit(len(states)))
        if self.shares and not fit.balanced:
            bias -= np.log(self.shares)  # the loss adds it
        return weight, bias

    def units(self, batch: Batch) -> int:
        """Return the number of learned tokens if labels are words, else of rows."""
        return len(batch.targets) if self.output == "words" else batch.rows

    @property
    def predicts_classes(self) -> bool:
        """Return whether a head predicts the one label of a row."""
        return self.has_label_head and not self.multi

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood of the label tokens, or of the labels, summed over the batch in nats."""
        if self.output == "words":
            return Loss(policy.sum_nll(batch), self.units(batch))
        import torch.nn.functional as F

        assert batch.labels is not None
        logits = self.logits(batch, policy)
        if self.multi:
            return Loss(F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum"), len(logits))
        # Probabilities of a teacher are learned as they are; labels as indices, which rounds as it always has.
        goal = batch.labels if self._soft else batch.labels.argmax(dim=1)
        return Loss(F.cross_entropy(logits, goal, reduction="sum"), len(logits))

    def logits(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the logits [B, K] of training: if balanced, with the log of each label's share added."""
        assert policy.head is not None
        logits: Tensor = policy.head(policy.pooled(batch)).float()
        return logits + logits.new_tensor(self.shares).log() if self.shares else logits


def in_order(
    fit: LinearFit, labels: Sequence[str], *, unseen: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K] of a probe in the order of `labels`, with the bias `unseen` for new ones."""
    import numpy as np

    weight = np.zeros((len(labels), fit.weight.shape[1]))
    bias = np.full(len(labels), unseen)
    indices = [labels.index(label) for label in fit.labels]
    weight[indices] = fit.weight
    bias[indices] = fit.bias
    return weight, bias


def laplace_logit(count: int) -> float:
    """Return the logit of a property that all of `count` rows have, by Laplace's rule of succession."""
    return math.log(count + 1)


def _multi_label_probe(
    states: NDArray[np.float32], targets: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K]: a part of one probe per label, at a fixed regularization."""
    import numpy as np

    from tunesmith.metrics.baselines import fit_linear

    count = targets.shape[1]
    weight = np.zeros((count, states.shape[1]))
    bias = np.zeros(count)
    for index, column in enumerate(track(targets.T, "fitting linear probes", unit="labels")):
        fit = fit_linear(states, ["yes" if has else "no" for has in column], tries=False)
        if len(fit.labels) == 2:
            weight[index] = HEAD_START * np.diff(fit.weight, axis=0)[0]
            bias[index] = HEAD_START * np.diff(fit.bias)[0]
        else:
            bias[index] = laplace_logit(len(states)) * (1 if fit.labels == ("yes",) else -1)
    return weight, bias
