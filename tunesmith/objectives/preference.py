"""Preference optimization on pairs or unpaired preferences, without a reward model.

Letters: B sequences of a batch, P pairs. Log-probabilities are sums over a completion's tokens, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.data.examples.preferences import pairs, unpaired_preferences
from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message, instructed
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces
from tunesmith.objectives.instruct import completion_budget
from tunesmith.objectives.pair_encoding import check_thoughts, encode_completions, preference_columns

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# Default beta of each loss: from its paper; dpo_norm: Tülu 3 (arXiv 2411.15124); simpo: its paper's lower bound.
BETAS = {"dpo": 0.1, "ipo": 0.1, "hinge": 0.1, "dpo_norm": 5.0, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
# Default weight of the chosen completion's own loss; it is part of ORPO's definition, KTO has none.
NLL = {"orpo": 1.0, "kto": 0.0}
DEFAULT_NLL = 0.1
WITHOUT_REFERENCE = ("orpo", "simpo")


class Preference(Objective):
    """Raise the probability of chosen completions above that of rejected ones, relative to the reference model.

    Reads preference pairs; with `kto`, unpaired preferences or the two completions of each pair. Decoders only. The
    loss is one of `pair_losses` plus `nll` times the mean loss per token of the chosen completion, which keeps its
    probability from falling with that of the rejected one (Pang et al. 2024, arXiv 2404.19733).
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"
    learns_from_votes: ClassVar[bool] = True
    results: ClassVar[str] = "pairs of answers"
    column_keys: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "prompt", "answer", "label", "winner")

    kind: Literal["preference"] = "preference"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    chosen: str = Field("", description="column with the chosen completion, or the chat that ends with it")
    rejected: str = Field("", description="column with the rejected completion")
    winner: str = Field("", description="column that names the better one of both, for answers in random order")
    answer: str = Field("", description="column with a completion that is rated by itself")
    label: str = Field("", description="column with the rating, good or bad")
    instruction: str = Field("", description="text put before every prompt")
    loss: Literal["auto", "dpo", "ipo", "hinge", "dpo_norm", "kto", "orpo", "simpo"] = Field(
        "auto", description="auto: dpo for pairs, kto for unpaired preferences"
    )
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = Field("auto", description="scale; auto: by the loss")
    gamma: float = Field(1.0, ge=0, description="simpo: target margin")
    nll: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="weight of the chosen completion's own loss; auto: by the loss"
    )
    metric: Literal["auto", "preference_accuracy", "thumbs_auc"] = Field("auto", description="headline; from the rows")
    max_new_tokens: int = Field(0, ge=0, description="longest completion, in tokens; 0: from the rows")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of prompt and completions."""
        roles = ("prompt", "chosen", "rejected", "winner", "answer", "label")
        return preference_columns(rows, {role: getattr(self, role) for role in roles})

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into pairs or unpaired preferences.

        Raises:
            DataError: with the errors of the whole file, or because the loss needs pairs.
        """
        columns = columns or self.columns(rows)
        if "chosen" in columns:
            used = {role: column for role, column in columns.items() if role != "margin"}
            return list(pairs(rows, columns=used, instruction=self.instruction, group=group))
        if self.loss not in ("auto", "kto"):
            raise DataError(
                f"{file_of(rows)}: objective.loss {self.loss} compares two completions, and these rows contain one "
                "with a rating; set loss: kto, or use rows with chosen and rejected"
            )
        return list(unpaired_preferences(rows, columns=columns, instruction=self.instruction, group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Preference:
        """Return the objective with the loss, metric and longest completion that suit the rows."""
        paired = isinstance(examples[0], Pair)
        loss = self.loss if self.loss != "auto" else "dpo" if paired else "kto"
        completions = [
            e.chosen if isinstance(e, Pair) else e.answer for e in examples if isinstance(e, Pair | UnpairedPreference)
        ]
        bound = {
            "loss": loss,
            "beta": BETAS[loss] if self.beta == "auto" else self.beta,
            "nll": NLL.get(loss, DEFAULT_NLL) if self.nll == "auto" else self.nll,
            "metric": "preference_accuracy" if paired else "thumbs_auc",
            "max_new_tokens": self.max_new_tokens or completion_budget(completions),
        }
        return self.model_copy(update=bound)

    def user_message(self, text: str) -> Message:
        """Return the instruction, if any, with the text."""
        return instructed([Message("user", text)], self.instruction)[0]

    def for_rows(self, examples: Sequence[Example], *, run: Path | None = None) -> Preference:
        """Return the objective with the metric for pairs or for unpaired preferences."""
        return self.bind(examples, "decoder")

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return when the loss needs the reference model; KTO needs it at every step, for mismatched completions."""
        return "none" if self.loss in WITHOUT_REFERENCE else "per_step" if self.loss == "kto" else "precomputed"

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the chosen and the rejected completion after their prompt, or the rated one."""
        assert isinstance(example, Pair | UnpairedPreference)
        if isinstance(example, Pair):
            completions, cuts, good = [example.chosen, example.rejected], [*example.cut], [1.0, 0.0]
        else:
            completions, cuts, good = [example.answer], [example.cut], [float(example.good)]
        check_thoughts(example.where, completions, template)
        rows, shortened = encode_completions(example.prompt, completions, template, limit=limit)
        rows = [_without_end(row, template) if cut else row for row, cut in zip(rows, cuts, strict=True)]
        return Encoded(tuple(rows), example.where, label=tuple(good), shortened=shortened)

    def make_learner(self) -> Learner:
        """Return a learner of this loss."""
        return PreferenceLearner(self)


@dataclass(frozen=True, slots=True)
class PreferenceLearner(Learner):
    """Computes the loss of a bound `Preference` objective; pairs are two consecutive rows of a batch, chosen first."""

    objective: Preference

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch with reference log-probabilities [B], unless they were precomputed or are not needed."""
        if self.objective.reference == "none" or batch.reference is not None:
            return batch
        return replace(batch, reference=policy.reference_logprobs(batch))

    def step_sums(self, batches: Sequence[Batch], policy: Policy) -> dict[str, float]:
        """Return the units; with KTO also what the KL to the reference model is the mean of.

        The KL, in nats per row, is estimated on completions of other prompts of the step. Source: Ethayarajh et al.
        2024 (KTO), arXiv 2402.01306, section 4.1.
        """
        sums = super(PreferenceLearner, self).step_sums(batches, policy)
        if self.objective.reference != "per_step" or not batches:
            return sums
        import torch

        from tunesmith.models.batch import pack

        with torch.no_grad():
            mixed = [pack(batch.mismatched).to(batch.ids.device) for batch in batches]
            gains = torch.cat([policy.logprobs(batch) - policy.reference_logprobs(batch) for batch in mixed])
        examples = sum(batch.examples for batch in batches)
        return {**sums, "gain": float(gains.sum()), "rows": len(gains), "examples": examples}

    def with_sums(self, batches: Sequence[Batch], sums: Mapping[str, float]) -> list[Batch]:
        """Return micro-batches with the KL of KTO, at least 0, added to their reference; 0 for a single example."""
        if sums.get("examples", 0) < 2:
            return list(batches)
        kl = max(0.0, sums["gain"] / sums["rows"])
        return [replace(batch, reference=batch.reference + kl) for batch in batches if batch.reference is not None]

    def units(self, batch: Batch) -> int:
        """Return the number of pairs; with KTO of completions."""
        return batch.rows if self.objective.loss == "kto" else batch.examples

    def loss_of(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """Compute the summed loss, a scalar, from the log-probabilities [B] of the batch's completions."""
        import torch

        from tunesmith.objectives.pair_losses import PAIR_LOSSES, PairLogprobs, PairLossOptions, kto

        options = self.objective
        assert options.beta != "auto"
        assert options.nll != "auto"
        assert batch.labels is not None
        reference = torch.zeros_like(logprobs) if batch.reference is None else batch.reference
        # Neither bincount nor a boolean index: both read a value, which makes the process wait for a GPU.
        tokens = batch.row_ids.new_zeros(batch.rows).index_add_(0, batch.row_ids, torch.ones_like(batch.row_ids))
        tokens = tokens.clamp(min=1)
        good = batch.labels.flatten() > 0
        means = logprobs / tokens
        own = options.nll * -(torch.where(good, means, 0.0) if options.loss == "kto" else means[::2]).sum()
        if options.loss == "kto":
            return own + kto(logprobs - reference, good, options.beta).sum()
        pairs = PairLogprobs(*(rows[side::2] for rows in (logprobs, reference, tokens) for side in (0, 1)))
        return own + PAIR_LOSSES[options.loss](pairs, PairLossOptions(options.beta, options.gamma)).sum()

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the loss, summed over pairs or completions."""
        return Loss(self.loss_of(policy.logprobs(batch), batch), self.units(batch))


def _without_end(row: Tokens, template: Template) -> Tokens:
    """Return the row with its end tokens not learned: a truncated completion did not end there.

    If they were learned, a rejected one would teach that completions never end.
    """
    ends = [index for index, learned in enumerate(row.learn) if learned][-len(template.end_ids) :]
    if [row.ids[index] for index in ends] != template.end_ids:  # the row was too long and lost its end tokens already
        return row
    return Tokens(row.ids, [learned and index not in ends for index, learned in enumerate(row.learn)])
