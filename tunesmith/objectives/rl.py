"""RLHF proper: answers are drawn, scored, and made likelier or less likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from torch import nn

from tunesmith.data.examples.prompts import RLPrompt, prompt_column, rl_prompts
from tunesmith.data.examples.types import Example
from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, TOOLS, detect
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.errors import DataError
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Objective, Produces
from tunesmith.objectives.instruct import Instruct, completion_budget

# Longest answer where no row has one to go by.
ROOM = 128


class Rl(Objective):
    """Raise the reward of the model's own answers while it stays near its start.

    Reads prompts; a row's own answer is only compared with. Decoders only. `grpo`: an answer counts as much as it is
    better than the others to its prompt (Shao et al. 2024, arXiv 2402.03300; loss per token as in DAPO, 2503.14476).
    `ppo`: as much as it is better than a value head expected (Ouyang et al. 2022, arXiv 2203.02155).
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"
    samples_completions: ClassVar[bool] = True

    kind: Literal["rl"] = "rl"
    algorithm: Literal["grpo", "ppo"] = Field(
        "grpo", description="grpo needs no value head and is the one to start with"
    )
    prompt: str = Field("", description="column with the prompt; empty: detected")
    answer: str = Field(
        "", description="column with a reference answer, for the report and the reward; empty: detected"
    )
    messages: str = Field("", description="column with whole chats instead of prompt and answer")
    instruction: str = Field("", description="text put before every prompt")
    reward: str | dict[str, float] = Field(
        "",
        description="what scores an answer: a `reward` run, a Python function `rules:score`, or several with weights",
    )
    group: int = Field(8, ge=1, description="answers drawn to each prompt; grpo compares them, so it needs 2")
    max_new_tokens: int = Field(0, ge=0, description="longest answer; 0: from the rows' answers, or 128")
    temperature: float = Field(1.0, gt=0, description="of the draw; the policy that learns is the one that draws")
    beta: float = Field(0.04, ge=0, description="weight of the KL to the start, per token")
    clip: float = Field(0.2, gt=0, description="how far a token's ratio may move before it counts no more")
    updates: int = Field(1, ge=1, description="optimizer steps on the same answers")
    scale: Literal["group", "none"] = Field(
        "group", description="grpo: rewards in units of their group's spread, or as they are"
    )
    missing_end_penalty: float = Field(
        1.0, ge=0, description="taken off the reward of an answer that max_new_tokens cut off"
    )
    mask_truncated: bool = Field(False, description="learn nothing from answers that were cut off")
    spread: float = Field(0.95, ge=0, le=1, description="ppo: lambda of the generalised advantages")
    value_weight: float = Field(0.1, ge=0, description="ppo: weight of the value head's loss")
    metric: Literal["reward"] = Field("reward", description="headline: mean reward of greedy answers")

    @field_validator("group")
    @classmethod
    def _grpo_compares(cls, group: int, info: ValidationInfo) -> int:
        """Alone in its group, every answer is as good as the group, and nothing is learned."""
        if group < 2 and info.data.get("algorithm") == "grpo":
            raise ValueError("leaves grpo nothing to compare; give 2 or more, or take algorithm: ppo")
        return group

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part; an answer is not needed."""
        named = {part: column for part, column in (("prompt", self.prompt), ("answer", self.answer)) if column}
        if self.messages or "prompt" in named:
            chosen = {"messages": self.messages} if self.messages else named
            return {**chosen, **beside(rows, chosen.values(), system=SYSTEMS, tools=TOOLS)}
        try:
            found = detect(rows, learned=False).columns
        except DataError:
            if not prompt_column(rows):
                raise
            found = {}
        if not found.keys() & {"messages", "conversations", "prompt"}:
            return {"prompt": found.get("text") or _prompt_column(rows), **named}
        judged = {"chosen", "rejected", "label", "margin", *(["answer"] if "label" in found else [])}
        return {**{part: column for part, column in found.items() if part not in judged}, **named}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Exercises, one per row."""
        return list(rl_prompts(rows, columns=columns or self.columns(rows), instruction=self.instruction, group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Rl:
        """The longest answer from the rows that have one."""
        known = [e.reference for e in examples if isinstance(e, RLPrompt) and e.reference]
        return self.model_copy(
            update={"max_new_tokens": self.max_new_tokens or (completion_budget(known) if known else ROOM)}
        )

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """The prompt, shortened where it does not fit; nothing in it is learned."""
        assert isinstance(example, RLPrompt)
        messages, shortened = template.fit(example.prompt, limit)
        ids = template.prompt(messages)
        return Encoded((Tokens.of(ids),), example.where, shortened=shortened, asks=True)

    @field_validator("reward", mode="wrap")
    @classmethod
    def _weighed(cls, reward: Any, read: Callable[[Any], str | dict[str, float]]) -> str | dict[str, float]:
        """One name, or names with their weights."""
        try:
            return read(reward)
        except ValidationError as error:
            raise ValueError("must be one name, or a mapping of name to a finite number") from error

    @property
    def rewards(self) -> dict[str, float]:
        """Each reward with its weight; none where none is named."""
        named = {self.reward: 1.0} if isinstance(self.reward, str) else self.reward
        return {name: weight for name, weight in named.items() if name}

    @property
    def reference(self) -> Literal["none", "per_step"]:
        """Return `per_step` if the reward is reduced by the KL to the reference model."""
        return "per_step" if self.beta > 0 or self.algorithm == "ppo" else "none"

    @property
    def starts_at_reference(self) -> bool:
        """Return true: the report gives the KL to the base even if the loss has no KL term."""
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
        """A value head for ppo, which says nothing at first; grpo needs none."""
        if self.algorithm == "grpo":
            return None
        head = nn.Linear(policy.hidden, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head.to(policy.device)


def _prompt_column(rows: Sequence[Row]) -> str:
    """The column with what is asked. Raises DataError where none is named like one."""
    if column := prompt_column(rows):
        return column
    cure = "name it in objective.prompt, or give rows with one"
    raise DataError(f"{file_of(rows)}: no column with a prompt among {columns_of(rows)}; {cure}")
