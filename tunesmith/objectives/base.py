"""The contracts of this package: what an objective declares, and what the training loop calls.

Letters: B rows of a batch, D size of a hidden state, K labels, N texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict

from tunesmith.data.examples.types import Example, Query
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tunesmith.models.batch import Batch, StepMetrics
    from tunesmith.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Loss:
    """A summed loss over a batch, the number of units in the sum, and metrics for the log.

    The training loop divides by the units of the whole step.
    """

    total: Tensor  # scalar
    units: float
    metrics: StepMetrics = field(default_factory=dict)


class Learner(ABC):
    """The interface of the training loop: batches in, a summed loss out.

    An objective whose loss needs nothing but its own settings is its own learner (`Objective.make_learner`).
    """

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """Return the batch with everything that needs no gradient, such as reference log-probabilities."""
        return batch

    def step_sums(self, batches: Sequence[Batch], policy: Policy) -> dict[str, float]:
        """Return what the loss of each micro-batch needs of all prepared ones of a step, as sums over these.

        A run of several processes adds them up; `with_sums` uses the totals. `units` is among them.
        """
        return {"units": sum(self.units(batch) for batch in batches)}

    def with_sums(self, batches: Sequence[Batch], sums: Mapping[str, float]) -> list[Batch]:
        """Return prepared micro-batches with what depends on the whole step, as KTO's KL estimate does.

        `sums` are the `step_sums` over all micro-batches of the step, of all processes.
        """
        return list(batches)

    def units(self, batch: Batch) -> float:
        """Return the number of units that the loss of a prepared batch sums over: learned tokens, rows or pairs.

        Units with a weight count by it, so that the loss of a step is a weighted mean.
        """
        return len(batch.targets)

    @property
    def predicts_classes(self) -> bool:
        """Return whether the loss is the cross-entropy of one class per row or token, by the `logits` of a head."""
        return False

    def logits(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the logits [N, K] of the rows or tokens of a batch, of a learner that predicts classes."""
        raise NotImplementedError(f"{type(self).__name__}: predicts no classes")

    @abstractmethod
    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the summed loss of a prepared batch; deterministic given its tensors."""


Produces = Literal["labels", "number", "text", "score", "likelihood", "vectors", "spans", "ranking"]


class Reader(Protocol):
    """A tuned model, as an objective that defines `answers` asks it."""

    policy: Policy
    template: Template
    limit: int

    def outputs(self, rows: Sequence[Tokens], compute: Callable[[Batch], Tensor]) -> Tensor:
        """Compute an output [N, ...] of each of N sequences; `compute` returns those of a batch, [B, ...]."""
        ...


class PassageSearch(Protocol):
    """An objective that searches passages, as the code that mines negatives and saves the passages uses it."""

    @property
    def hard_negatives(self) -> int:
        """Return how many negatives are mined for a row."""
        ...

    @property
    def needs_negatives(self) -> bool:
        """Return whether a row without negatives teaches nothing."""
        ...

    @property
    def passages(self) -> tuple[str, ...]:
        """Return the distinct passages that are searched."""
        ...

    def for_rows(self, examples: Sequence[Example]) -> Self:
        """Return the objective with the passages of other rows."""
        ...

    def without_rows(self) -> Self:
        """Return the objective without the paths of its rows and documents."""
        ...

    def with_mined(self) -> Self:
        """Return the objective for rows to which mined negatives were added."""
        ...

    def right(self, row: Query) -> Collection[str]:
        """Return the passages that any row has for the same query, without case and spaces."""
        ...

    def evidence_of(self, row: Query) -> Collection[str]:
        """Return the plain evidence of all rows with the same query."""
        ...

    def passages_file(self) -> str:
        """Return the content of `passages.jsonl`."""
        ...


@dataclass(frozen=True, slots=True)
class Retriever:
    """A search that finds passages for a model that ranks them."""

    search: Literal["fused", "words", "vectors"]  # as `documents.search`
    encoder: str  # model of the vectors
    candidates: int  # passages per query


# The name of the only task of a run that has no others.
SINGLE_TASK = ""


class Objective(BaseModel, ABC):
    """An objective: the section `objective` of a recipe, and the capabilities that other packages ask for.

    Rows become typed examples (`columns`, `examples`), examples become token sequences (`encode`), and the policy may
    get an output layer (`head`). Code outside `objectives/` and `config/` asks for a capability, not for a class, so
    that a new objective is one file and its name in `multitask.AnyPart`.

    In all methods, `template` is the tokenizer with its chat template, `limit` the longest row in tokens, `family`
    `decoder` or `encoder`, and `examples` are the training rows unless said otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: str
    families: ClassVar[tuple[str, ...]] = ("decoder", "encoder")
    # What the tuned model returns for an input: labels, a number, an answer, a score of an answer, or a likelihood.
    produces: ClassVar[Produces] = "text"
    # Whether training samples completions from the policy instead of learning from those of the rows.
    samples_completions: ClassVar[bool] = False

    # Whether a row contains the answer that a completion is compared with.
    has_reference_answers: ClassVar[bool] = False

    # Whether the rows of a large file can be kept in files: no code compares all of them in memory.
    reads_large_files: ClassVar[bool] = False

    # The word of messages for what the model returns.
    results: ClassVar[str] = "answers"
    # Settings that name columns, those that every row needs first.
    column_keys: ClassVar[tuple[str, ...]] = ()
    # Settings that name a file of rows or documents, relative to the recipe.
    file_keys: ClassVar[tuple[str, ...]] = ()
    # Settings that name a model besides that of the run.
    model_keys: ClassVar[tuple[str, ...]] = ()
    # Columns that rows without a target, such as new ones, need not have.
    optional_columns: ClassVar[tuple[str, ...]] = ()
    # Route of the server that answers for a tuned model; empty if none does.
    route: ClassVar[str] = "v1/chat/completions"
    # Pipeline tag of the Hub; empty if it depends on the model family.
    hub_task: ClassVar[str] = ""
    # Whether the tuned model reads a text as `question` encodes it, not as a chat.
    reads_texts: ClassVar[bool] = False
    # Whether an added output layer makes the results, even in a decoder.
    needs_head: ClassVar[bool] = False
    # Whether a base model gives results, too, without a tuned head.
    answers_untuned: ClassVar[bool] = False
    # Whether the tuned model searches the passages of its run when it is asked.
    searches: ClassVar[bool] = False
    # Whether fully tuned weights are saved in the class of transformers for the task, which other programs open.
    saved_whole: ClassVar[bool] = False
    # What an export to transformers computes as the model does, for its model card.
    exported: ClassVar[str] = "words"
    # How such an export is used, of `inference.export.usage.CODE`, `{read}` being text or chat; empty: by settings.
    export_form: ClassVar[str] = ""
    # Why the model is not exported; empty if it is.
    no_export: ClassVar[str] = ""
    # Whether the base model is scored by a probe of its states that is fitted to the training rows.
    probes_base: ClassVar[bool] = False
    # Whether the loss compares the rows of a step with each other, so that one process has to compute them all.
    compares_rows: ClassVar[bool] = False
    # Whether the score of a row is between 0 and 1.
    scores_are_shares: ClassVar[bool] = True
    # Whether it learns from the votes of raters on pairs of answers.
    learns_from_votes: ClassVar[bool] = False
    # Why no control with shuffled targets can be run; empty if one can.
    no_controls: ClassVar[str] = ""
    # Optimizer steps that a small data set gets by default, and the most epochs that they may take.
    least_steps: ClassVar[int] = 200
    most_epochs: ClassVar[int] = 5
    # Whether the encoder is chosen if the user names no model, and why some candidates cannot learn the objective.
    prefers_encoder: ClassVar[bool] = False
    unsuited: ClassVar[str] = (
        "the rows ask for text, which only a decoder generates; TF-IDF, a probe and an encoder predict labels"
    )
    # The line of Python that uses a tuned `{model}` for a `{text}`.
    python_use: ClassVar[str] = 'print({model}.generate(["{text}"])[0])'

    @property
    def known_labels(self) -> tuple[str, ...]:
        """Return all labels in order; empty if the model produces no labels."""
        return ()

    @property
    def label_mode(self) -> Literal["single", "multi"] | None:
        """Return how many labels a row has; None if the model produces no labels."""
        return None

    @property
    def has_label_head(self) -> bool:
        """Return whether labels are produced by a linear head rather than as words."""
        return False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs of a linear head, in order."""
        return self.known_labels or (self.produces,)

    @property
    def mean_and_scale(self) -> tuple[float, float]:
        """Return mean and deviation of the training rows, of a head for standardised values."""
        return 0.0, 1.0

    @property
    def vector_sizes(self) -> tuple[int, ...]:
        """Return the numbers of first entries of a vector that were trained to be vectors of their own."""
        return ()

    @property
    def starts_from_probe(self) -> bool:
        """Return whether the output layer starts as a linear probe of the base model (`probe_head`), not as zeros."""
        return self.has_label_head

    @property
    def has_head(self) -> bool:
        """Return whether an added output layer produces the results."""
        return self.needs_head or self.has_label_head

    @property
    def fits_tfidf(self) -> bool:
        """Return whether TF-IDF with a linear model is a baseline: a row has one label, or a number."""
        return self.label_mode == "single" or self.produces == "number"

    @property
    def probe_metric(self) -> str:
        """Return the metric by which probes and TF-IDF baselines choose their settings."""
        return "accuracy"

    @property
    def masked_share(self) -> float:
        """Return the share of words that are masked for an encoder; 0 if none are."""
        return 0.0

    @property
    def reference(self) -> Literal["none", "precomputed", "per_step"]:
        """Return when the loss needs the reference model: never, once before training, or at every step."""
        return "none"

    @property
    def starts_at_reference(self) -> bool:
        """Return whether training must start from the reference model because the loss measures the distance to it."""
        return self.reference != "none"

    @property
    def thinks(self) -> bool:
        """Return whether the model learned to answer after thoughts; then it thinks unless asked not to."""
        return False

    @property
    def thinking_tokens(self) -> int:
        """Return the tokens that suffice for the thoughts of nearly all rows; 0 if the rows have none."""
        return 0

    @property
    def completion_budget(self) -> int:
        """Return the tokens that are sampled per training row, over all of its completions."""
        return 0

    @property
    def test_readings(self) -> float:
        """Return how many tokens a model reads for a test row, as a multiple of those of a training row."""
        return 1.0

    @property
    def updates_per_step(self) -> int:
        """Return the optimizer updates on the same prepared batches."""
        return 1

    @property
    def rewards(self) -> Mapping[str, float]:
        """Return the reward models and functions with their weights; empty if nothing is rewarded."""
        return {}

    @property
    def task_objectives(self) -> Mapping[str, Objective]:
        """Return the objective of every task by name; a single task has the name `SINGLE_TASK`."""
        return {SINGLE_TASK: self}

    @property
    def task_weights(self) -> Mapping[str, float]:
        """Return the weight of every task in the loss of a step."""
        return {SINGLE_TASK: 1.0}

    def task_shares(self, sizes: Mapping[str, int]) -> Mapping[str, float]:
        """Return the fraction of a step's rows that each task gets, from its number of training rows."""
        return {SINGLE_TASK: 1.0}

    def with_task_objectives(self, objectives: Mapping[str, Objective]) -> Objective:
        """Return the objective with the objective of every task replaced, as `task_objectives` names them."""
        return objectives[SINGLE_TASK]

    def task_policy(self, policy: Policy, task: str) -> Policy:
        """Return the policy with the head of one task."""
        return policy

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return the automatic learning rate as a fraction of the technique's own.

        Args:
            family: of the model.
            plain_weights: the technique updates weights or low-rank updates of them, not soft prompts or vectors.
            adapter: the technique is LoRA over unquantized weights.
            steps: optimizer steps of the run.
        """
        return 1.0

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode one example as training rows: one, or a row for each window of a document."""
        return [self.encode(example, template, limit=limit)]

    def bind_encoded(self, train: Sequence[Encoded]) -> Self:
        """Return the objective with everything that depends on the encoded training rows, such as label shares."""
        return self

    def encoded_notes(
        self, examples: Sequence[Example], rows: Sequence[Encoded], template: Template, *, limit: int
    ) -> list[str]:
        """Return notes on rows, as `encode_all` returns them, that have no learned token."""
        return []

    def fixed_tokens(self, template: Template) -> int:
        """Return the tokens of a row that are the same in every row, such as the question about a text."""
        return 0

    def template_notes(self, examples: Sequence[Example], template: Template) -> list[str]:
        """Return notes on how the template of the model treats the rows, such as thoughts that it drops.

        Raises:
            DataError: the template cannot write what the objective or a row asks for.
        """
        return [f"{len(self.passages)} passages are searched"] if self.passages else []

    @property
    def passages(self) -> tuple[str, ...]:
        """Return the distinct passages that are searched; most objectives search none."""
        return ()

    @property
    def searching(self) -> PassageSearch | None:
        """Return the objective itself if there are passages to search."""
        return None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the texts that are put before a text that becomes a vector; empty if there are none."""
        return ()

    @property
    def retriever(self) -> Retriever | None:
        """Return the search whose passages the model ranks; None if the model searches by itself, or not at all."""
        return None

    def sides(self, sequences: int) -> list[str]:
        """Return the names of the sequences of a row, for a preview; empty ones are not shown."""
        return ["preferred", "other"] if sequences == 2 else [""] * sequences

    def prompt_templates(self, family: str) -> tuple[str, ...]:
        """Return the prompt templates tried on the base model; the best one on validation is the base's score.

        They are meant for `prompt_messages`, an empty one being the default prompt. There are none if the base is
        evaluated without a prompt.
        """
        return ()

    def user_message(self, text: str) -> Message:
        """Return the user message about a text that the tuned model expects: with the recipe's instruction, if any."""
        return Message("user", text)

    def prompt_messages(self, example: Example, wording: str = "") -> list[Message]:
        """Return the messages of a row that come before its answer.

        Args:
            example: a row of an objective with `has_reference_answers`.
            wording: one of `prompt_templates`; empty for the default prompt.
        """
        raise NotImplementedError(f"{type(self).__name__}: rows have no prompt with a reference answer")

    def without_answer(self, example: Example) -> Example:
        """Return a row with its prompt alone, for a teacher to answer; arguments as in `with_answer`."""
        raise NotImplementedError(f"{type(self).__name__}: rows have no prompt with a reference answer")

    def with_answer(self, example: Example, answer: str) -> Example:
        """Return a row that learns an answer.

        Args:
            example: a row without one, of an objective with `has_reference_answers`.
            answer: of a teacher.
        """
        raise NotImplementedError(f"{type(self).__name__}: rows have no prompt with a reference answer")

    def in_words(self) -> Self:
        """Return the objective for a model without an added head: labels are produced as words."""
        return self

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """Score every row of a batch, [B]: its summed log-probability in nats, or the reward of a reward model."""
        return policy.logprobs(batch)

    def for_rows(self, examples: Sequence[Example], *, run: Path | None = None) -> Self:
        """Return the objective of a tuned model with the metric for other rows; most have one metric for all rows.

        Args:
            examples: the other rows.
            run: folder of the run; the passages it was tuned to search are searched as well.
        """
        return self

    def within(self, part: Sequence[Example]) -> Sequence[Example]:
        """Return the rows of one part of a split; rows that are completed by others get them from the same part."""
        return part

    def inference_objective(self) -> Objective:
        """Return the objective that the tuned model is saved and used with."""
        return self

    def without_rows(self) -> Self:
        """Return the objective without the paths of its rows, for a model that is given to others."""
        return self

    def with_models(self, place: Callable[[str], str]) -> Self:
        """Return the objective with other names of the models that it uses, those of `model_keys`."""
        named = {key: place(getattr(self, key)) for key in self.model_keys}
        return self.model_copy(update=named) if named else self

    def question(self, text: str, template: Template, *, limit: int, passage: bool = False) -> tuple[Tokens, bool]:
        """Encode what a model with a head reads before it answers about a text.

        Args:
            text: the text.
            template: encodes it.
            limit: greatest number of tokens.
            passage: it is searched, not searched for; only models for search distinguish both.

        Returns:
            The tokens, and whether the text was shortened.
        """
        if not template.chats:
            ids = template.document(template.harmless(text)).ids
            return Tokens.of(template.shortened(ids, limit)), len(ids) > limit
        messages, shortened = template.fit([self.user_message(text)], limit)
        return Tokens.of(template.prompt(messages)), shortened

    def pair(self, query: str, passage: str, template: Template, *, limit: int) -> tuple[Tokens, bool]:
        """Encode a query with a passage, of an objective that produces a ranking.

        Returns:
            The tokens, and whether a text was shortened.
        """
        raise NotImplementedError(f"{type(self).__name__}: ranks no passages")

    def read(
        self, prompt: Sequence[Message], completions: Sequence[str], template: Template, *, limit: int
    ) -> tuple[list[Tokens], bool]:
        """Encode what is read before each completion of a prompt is scored, of an objective that produces scores.

        Returns:
            One sequence per completion, and whether anything was shortened.
        """
        raise NotImplementedError(f"{type(self).__name__}: scores no completions")

    def export_settings(self, *, chats: bool) -> dict[str, Any]:
        """Return what the code of `export_form` reads from config.json; `chats`: the model reads texts as chats."""
        return {}

    def answers(self, texts: Sequence[str], model: Reader) -> list[dict[str, Any]] | None:
        """Answer texts in a form of this objective, one JSON object each; None if `produces` names a usual form."""
        return None

    def make_learner(self) -> Learner:
        """Return the learner that computes the loss.

        Raises:
            NotImplementedError: the objective samples completions, so its learner also needs the prompts and a
                reward (`training.train.learner_of`).
        """
        if isinstance(self, Learner):
            return self
        raise NotImplementedError(f"{type(self).__name__}: the learner needs prompts and a reward")

    @property
    def evaluated_as(self) -> str:
        """Return the key of the evaluator; without one of this name, `produces` selects it."""
        return self.kind

    def for_base(self, folder: Path | None, family: str) -> Self:
        """Return the objective with what the `folder` of a base model states about its use."""
        return self

    def for_other_base(self, family: str, named: Collection[str]) -> Self:
        """Return the objective of a run with what it has chosen by its base model left to another one.

        Args:
            family: of the run's base model.
            named: dotted keys of a recipe that stay as they are.
        """
        return self

    @property
    def states_key(self) -> tuple[str, ...]:
        """Return the name under which `states` of a base model are kept."""
        return ("states",)

    def states(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the vector of every row, [B, D]: by default the pooled state."""
        return policy.pooled(batch)

    def save_files(self, folder: Path, *, limit: int, hidden: int) -> None:
        """Write files into a model `folder` by which other programs open it; `hidden` is the width of its states."""

    def whole(self, policy: Policy) -> Any | None:
        """Return the network of transformers that computes what policy and head do; None if it is not known here."""
        return None

    def untuned_head(self, policy: Policy) -> nn.Module | None:
        """Return the output layer for the objective that a base model has itself; None if it has none."""
        return None

    @abstractmethod
    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return role -> column, as named in the recipe or as detected.

        Raises:
            DataError: the columns are ambiguous or missing.
        """

    @abstractmethod
    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into typed examples.

        Args:
            rows: rows of one file.
            group: column with the group of a row; empty for none.
            columns: role -> column; by default those of `columns`.

        Raises:
            DataError: with the errors of the whole file.
        """

    def for_later_rows(self, examples: Sequence[Example]) -> Self:
        """Return the objective by which rows that follow these are parsed, such as with several labels."""
        return self

    def bind(self, examples: Sequence[Example], family: str) -> Self:
        """Return the objective with everything that depends on the data: labels, head, longest answer.

        `examples` are all rows of the run, held-out ones included.
        """
        return self

    @abstractmethod
    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode one example as token sequences of at most `limit` tokens."""

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a new output layer [B, D] -> outputs for this network; None if the network's own is used."""
        return None

    def probe_head(
        self, states: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fit a linear head to the states of the base model, of an objective that `starts_from_probe`.

        Args:
            states: of rows, or of the tokens of an objective that produces spans, [N, D].
            targets: the labels of the encoded rows, [N, K], or the number of each token's tag, [N, 1].

        Returns:
            Weight [K, D] and bias [K].
        """
        raise NotImplementedError(f"{type(self).__name__}: the head does not start from a probe")


def zero_head(policy: Policy, *, outputs: int) -> nn.Module:
    """Return a linear layer [B, D] -> [B, outputs] of zeros, so that the first loss is that of guessing."""
    from torch import nn

    layer = nn.Linear(policy.hidden, outputs, device=policy.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def one_output(states: Tensor, policy: Policy) -> Tensor:
    """Return what a head of one output says about states [B, D], [B]: a score, a number or a value estimate."""
    assert policy.head is not None
    outputs: Tensor = policy.head(states).float()[:, 0]
    return outputs
