"""Reinforcement learning from rewards: completions are sampled, scored, and made likelier or less likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from tunesmith.data.examples.prompts import RLPrompt, prompt_column, rl_prompts
from tunesmith.data.examples.types import Example
from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, TOOLS, detect
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.objectives.base import Objective, Produces, zero_head
from tunesmith.objectives.instruct import Instruct, completion_budget

if TYPE_CHECKING:
    from torch import nn

    from tunesmith.models.policy import Policy

# Longest completion, in tokens, if no row contains an answer.
DEFAULT_NEW_TOKENS = 128


class Rl(Objective):
    """Raise the reward of sampled completions while the policy stays close to the reference model.

    Reads prompts; the answer of a row is only compared with. Decoders only. `grpo`: the advantage of a completion is
    its reward relative to the other completions of its prompt (Shao et al. 2024, arXiv 2402.03300; loss per token as
    in DAPO, arXiv 2503.14476). `ppo`: relative to the estimate of a value head (Ouyang et al. 2022, arXiv 2203.02155).
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"
    learns_from_votes: ClassVar[bool] = True
    samples_completions: ClassVar[bool] = True
    results: ClassVar[str] = "answers to a reward"
    column_keys: ClassVar[tuple[str, ...]] = ("prompt", "answer", "messages")
    no_controls: ClassVar[str] = "a reward may not depend on the reference answers that would be shuffled"

    kind: Literal["rl"] = "rl"
    algorithm: Literal["grpo", "ppo"] = Field("grpo", description="start with grpo, which needs no value head")
    prompt: str = Field("", description="column with the prompt; empty: detected")
    answer: str = Field(
        "", description="column with a reference answer, for the report and the reward; empty: detected"
    )
    messages: str = Field("", description="column with whole chats, instead of prompt and answer")
    instruction: str = Field("", description="text put before every prompt")
    reward: str | dict[str, float] = Field(
        "",
        description="scores a completion: a `reward` run, a Python function `rules:score`, or several with weights",
    )
    group: int = Field(8, ge=1, description="completions sampled per prompt; grpo compares them, so it needs 2")
    max_new_tokens: int = Field(0, ge=0, description="longest completion, in tokens; 0: from the rows, or 128")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the completions that are learned from")
    beta: float = Field(0.04, ge=0, description="weight of the KL to the reference model, per token")
    clip: float = Field(0.2, gt=0, description="clip range of the probability ratio of a token")
    updates: int = Field(1, ge=1, description="optimizer steps on the same completions")
    engine: str = Field(
        "",
        description="samples the completions: vllm or sglang, with options of it, or the address of a running one; "
        "empty: this process",
    )
    scale: Literal["group", "none"] = Field(
        "group", description="grpo: divide rewards by the standard deviation of their group, or not"
    )
    missing_end_penalty: float = Field(
        1.0, ge=0, description="subtracted from the reward of a completion that max_new_tokens cut off"
    )
    mask_truncated: bool = Field(False, description="do not learn from completions that were cut off")
    spread: float = Field(0.95, ge=0, le=1, description="ppo: lambda of the generalized advantage estimation")
    value_weight: float = Field(0.1, ge=0, description="ppo: weight of the value loss")
    metric: Literal["reward"] = Field("reward", description="headline: mean reward of greedy completions")

    @field_validator("group")
    @classmethod
    def _check_group(cls, group: int, info: ValidationInfo) -> int:
        """Refuse a group of one: the advantage of a completion over itself is 0."""
        if group < 2 and info.data.get("algorithm") == "grpo":
            raise ValueError("grpo compares the completions of a group; use 2 or more, or algorithm: ppo")
        return group

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of the prompt and, if there is one, of the reference answer.

        Raises:
            DataError: no column contains prompts.
        """
        named = {role: column for role, column in (("prompt", self.prompt), ("answer", self.answer)) if column}
        if self.messages or "prompt" in named:
            used = {"messages": self.messages} if self.messages else named
            return {**used, **beside(rows, used.values(), system=SYSTEMS, tools=TOOLS)}
        try:
            detected = detect(rows, learned=False).columns
        except DataError:
            if not prompt_column(rows):
                raise
            detected = {}
        if not detected.keys() & {"messages", "conversations", "prompt"}:
            column = detected.get("text") or prompt_column(rows)
            if not column:
                raise DataError(
                    f"{file_of(rows)}: no column with a prompt among {columns_of(rows)}; "
                    "name it in objective.prompt, or add one"
                )
            return {"prompt": column, **named}
        preferences = {"chosen", "rejected", "label", "margin", *(["answer"] if "label" in detected else [])}
        return {**{role: column for role, column in detected.items() if role not in preferences}, **named}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into prompts with their reference answers."""
        return list(rl_prompts(rows, columns=columns or self.columns(rows), instruction=self.instruction, group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Rl:
        """Return the objective with the longest completion set from the reference answers."""
        answers = [e.reference for e in examples if isinstance(e, RLPrompt) and e.reference]
        longest = self.max_new_tokens or (completion_budget(answers) if answers else DEFAULT_NEW_TOKENS)
        return self.model_copy(update={"max_new_tokens": longest})

    def user_message(self, text: str) -> Message:
        """Return the instruction, if any, with the text."""
        return self.inference_objective().user_message(text)

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the prompt, shortened if it does not fit; none of its tokens are learned."""
        assert isinstance(example, RLPrompt)
        messages, shortened = template.fit(example.prompt, limit)
        ids = template.prompt(messages)
        return Encoded((Tokens.of(ids),), example.where, shortened=shortened, asks=True)

    @field_validator("reward", mode="wrap")
    @classmethod
    def _check_reward(cls, reward: Any, read: Callable[[Any], str | dict[str, float]]) -> str | dict[str, float]:
        """Replace the messages of the union by one of ours."""
        try:
            return read(reward)
        except ValidationError as error:
            raise ValueError("must be one name, or a mapping of name to a finite number") from error

    def without_rows(self) -> Rl:
        """Return the objective without the folders of its rewards, for a model that is given to others."""
        return self.model_copy(update={"reward": {Path(name).name: weight for name, weight in self.rewards.items()}})

    @property
    def rewards(self) -> dict[str, float]:
        """Return the weight of every reward function or reward model."""
        named = {self.reward: 1.0} if isinstance(self.reward, str) else self.reward
        return {name: weight for name, weight in named.items() if name}

    @property
    def reference(self) -> Literal["none", "per_step"]:
        """Return `per_step` if the reward is reduced by the KL to the reference model."""
        return "per_step" if self.beta > 0 or self.algorithm == "ppo" else "none"

    @property
    def starts_at_reference(self) -> bool:
        """Return True: the report gives the KL to the base even if the loss has no KL term."""
        return True

    @property
    def completion_budget(self) -> int:
        """Return the tokens of one group of completions."""
        return self.group * self.max_new_tokens

    @property
    def updates_per_step(self) -> int:
        """Return the optimizer updates on the same completions."""
        return self.updates

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return 0.1: at larger rates the policy leaves the region in which its samples are informative."""
        return 0.1

    def inference_objective(self) -> Instruct:
        """Return the `instruct` objective with the same prompts: the tuned model answers."""
        return Instruct(**self.model_dump(include={"prompt", "answer", "messages", "instruction", "max_new_tokens"}))

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a zero-initialized value head [M, D] -> [M, 1] for ppo; grpo needs none."""
        return None if self.algorithm == "grpo" else zero_head(policy, outputs=1)
