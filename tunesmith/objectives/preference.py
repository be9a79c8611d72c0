"""People prefer this answer: pairs and thumbs, without a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from tunesmith.data.examples.preferences import pairs, unpaired_preferences
from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch, mismatched_pairs
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces
from tunesmith.objectives.instruct import completion_budget
from tunesmith.objectives.pair_encoding import answered, columns_of
from tunesmith.objectives.pair_losses import PAIR_LOSSES, PairLogprobs, PairLossOptions, kto

# Each loss's own scale: the papers', Tülu 3's for dpo_norm, and SimPO's lower bound.
BETAS = {"dpo": 0.1, "ipo": 0.1, "hinge": 0.1, "dpo_norm": 5.0, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
# How much of the chosen answer's own loss is added: ORPO's is part of its definition, KTO has none.
NLL = {"orpo": 1.0, "kto": 0.0}
SOME_NLL = 0.1
WITHOUT_REFERENCE = ("orpo", "simpo")


class Preference(Objective):
    """Raise the answers that people prefer above the others, measured against the start.

    Reads Pair rows, or Thumb rows with `kto`, which takes the two answers of a pair apart. Decoders only. Loss: one of
    `pair_losses`, a sum over pairs (kto: thumbs), plus `nll` times the chosen answer's mean loss per id, which keeps
    it from losing probability with the other one (Pang et al. 2024, arXiv 2404.19733).
    """

    # A recipe says `loss: dpo`; in here `loss` is what every objective can do.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)
    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"

    kind: Literal["preference"] = "preference"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    chosen: str = Field("", description="column with the preferred answer, or the chat that ends with it")
    rejected: str = Field("", description="column with the other answer")
    answer: str = Field("", description="column with an answer that got a thumb")
    label: str = Field("", description="column with the thumb, up or down")
    instruction: str = Field("", description="text put before every prompt")
    form: Literal["auto", "dpo", "ipo", "hinge", "dpo_norm", "kto", "orpo", "simpo"] = Field(
        "auto", alias="loss", description="auto: dpo for pairs, kto for thumbs"
    )
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = Field("auto", description="scale; auto: by the loss")
    gamma: float = Field(1.0, ge=0, description="simpo: the lead that is wanted")
    nll: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="weight of the chosen answer's own loss; auto: by the loss"
    )
    metric: Literal["auto", "preference_accuracy", "thumbs_auc"] = Field("auto", description="headline; from the rows")
    max_new_tokens: int = Field(0, ge=0, description="longest answer; 0: from the answers")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part."""
        parts = ("prompt", "chosen", "rejected", "answer", "label")
        return columns_of(rows, {part: getattr(self, part) for part in parts})

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Pairs or thumbs, one per row. Raises DataError for thumbs where the loss needs pairs."""
        columns = columns or self.columns(rows)
        if "chosen" in columns:
            used = {part: column for part, column in columns.items() if part != "margin"}
            return list(pairs(rows, columns=used, instruction=self.instruction, group=group))
        if self.form not in ("auto", "kto"):
            raise DataError(
                f"{file_of(rows)}: objective.loss {self.form} compares two answers, and these rows hold one with a "
                "thumb; write loss: kto, or give rows with chosen and rejected"
            )
        return list(unpaired_preferences(rows, columns=columns, instruction=self.instruction, group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Preference:
        """Loss, scale, headline and longest answer, as the rows are."""
        paired = isinstance(examples[0], Pair)
        form = self.form if self.form != "auto" else "dpo" if paired else "kto"
        liked = [
            e.chosen if isinstance(e, Pair) else e.answer for e in examples if isinstance(e, Pair | UnpairedPreference)
        ]
        found = {
            "form": form,
            "beta": BETAS[form] if self.beta == "auto" else self.beta,
            "nll": NLL.get(form, SOME_NLL) if self.nll == "auto" else self.nll,
            "metric": "preference_accuracy" if paired else "thumbs_auc",
            "max_new_tokens": self.max_new_tokens or completion_budget(liked),
        }
        return self.model_copy(update=found)

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return when the loss needs the reference model; KTO needs it at every step, for mismatched completions."""
        return "none" if self.form in WITHOUT_REFERENCE else "per_step" if self.form == "kto" else "precomputed"

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """The chosen and the rejected answer behind their prompt, or the one with a thumb."""
        assert isinstance(example, Pair | UnpairedPreference)
        if isinstance(example, Pair):
            answers, cuts, good = [example.chosen, example.rejected], [*example.cut], [1.0, 0.0]
        else:
            answers, cuts, good = [example.answer], [example.cut], [float(example.good)]
        rows, shortened = answered(example.prompt, answers, template, limit=limit)
        rows = [_open_ended(row, template) if cut else row for row, cut in zip(rows, cuts, strict=True)]
        return Encoded(tuple(rows), example.where, label=tuple(good), shortened=shortened)

    def head(self, policy: Policy) -> nn.Module | None:
        """None: the model's own words are used."""
        return None

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch with what the start says to its rows."""
        if self.reference == "none" or batch.reference is not None:
            return batch
        return replace(batch, reference=policy.reference_logprobs(batch))

    def together(self, batches: Sequence[Batch], policy: Policy) -> list[Batch]:
        """The prepared micro-batches of a step; with KTO what the start says plus the KL to it.

        The KL is estimated on answers to other prompts of the step and never below 0; a step of one example has none.
        """
        if self.reference != "per_step" or sum(batch.examples for batch in batches) < 2:
            return list(batches)
        longest = 1 + max(
            batch.row_index.shape[1] for batch in batches
        )  # the last id of a row is no token of its batch
        mixed = [mismatched_pairs(batch, batches[place - 1], longest=longest) for place, batch in enumerate(batches)]
        kl = _kl(mixed, policy)
        return [replace(one, reference=one.reference + kl) for one in batches if one.reference is not None]

    def units(self, batch: Batch) -> int:
        """Pairs; with KTO thumbs, of which a pair holds two."""
        return batch.rows if self.form == "kto" else batch.examples

    def loss_of(self, logs: Tensor, batch: Batch) -> Tensor:
        """The sum over a batch whose rows have these log-probabilities [B]."""
        assert self.beta != "auto"
        assert self.nll != "auto"
        before = torch.zeros_like(logs) if batch.reference is None else batch.reference
        ids = torch.bincount(batch.row_ids, minlength=batch.rows).clamp(min=1)
        assert batch.labels is not None
        good = batch.labels.flatten() > 0
        own = self.nll * -(logs / ids)[good].sum()
        if self.form == "kto":
            return own + kto(logs - before, good, self.beta).sum()
        sides = PairLogprobs(*(part[row::2] for part in (logs, before, ids) for row in (0, 1)))
        return own + PAIR_LOSSES[self.form](sides, PairLossOptions(self.beta, self.gamma)).sum()

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Sum over pairs, or over thumbs."""
        return Loss(self.loss_of(policy.logprobs(batch), batch), self.units(batch))


def _open_ended(row: Tokens, template: Template) -> Tokens:
    """The row without its end among what is learned: an answer that was cut off did not end there.

    A rejected one would else teach that answers never end.
    """
    ends = [place for place, learned in enumerate(row.learn) if learned][-len(template.end_ids) :]
    if [row.ids[place] for place in ends] != template.end_ids:  # too long, and cut before its end once more
        return row
    return Tokens(row.ids, [learned and place not in ends for place, learned in enumerate(row.learn)])


@torch.no_grad()
def _kl(batches: Sequence[Batch], policy: Policy) -> Tensor:
    """How far the policy is from the start on these rows, in nats a row, not below 0."""
    gains = [policy.logprobs(batch) - policy.reference_logprobs(batch) for batch in batches]
    return torch.cat(gains).mean().clamp(min=0)
