"""Local models: generate, classify, score and embed with a network in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor

from tunesmith.config import AnyObjective
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message, instructed, whole
from tunesmith.data.tokenization.windows import beginning
from tunesmith.errors import RecipeError
from tunesmith.inference.defaults import checked_sampling, refuse_thinking, sampling_of, thinking_mode
from tunesmith.inference.scoring import (
    Classified,
    classified,
    masked_words,
    option_ids,
    row_scores,
    settled,
    text_outputs,
)
from tunesmith.models.batch import Batch
from tunesmith.models.families import positions_of, prompt_limit
from tunesmith.models.generation.generate import (
    AnswerIds,
    Piece,
    before_stop,
    generate_within,
    option_scores,
    stream_pieces,
)
from tunesmith.models.generation.sampling import Reply, Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK

R = TypeVar("R")  # result for one text


def listed(texts: str | Iterable[str], what: str) -> list[str]:
    """Return one or several texts as a list; raise RecipeError for anything else, DataError for half an emoji."""
    # A table would be a list of its column names.
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping | bytes) or hasattr(texts, "columns"):
        kind, fix = type(texts).__name__, 'give one column of a table, such as table["text"]'
        raise RecipeError(f"{what}: expected a text or a list of texts, got {kind}; {fix}")
    items = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(items, 1):
        if not isinstance(text, str):
            raise RecipeError(f"{what}: text {number}: expected a string, got {text!r}; remove it")
        whole(text, f"{what}: text {number}")
    return items


def refuse_empty(rows: Sequence[Sequence[int]], what: str) -> None:
    """Raise RecipeError if a text has no token ids."""
    if empty := [i for i, ids in enumerate(rows) if not ids]:
        raise RecipeError(f"{what}: text {empty[0] + 1} is empty; remove it")


def turns(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages of a chat; raise RecipeError for an empty list or another type, DataError for half emojis."""
    if not (isinstance(messages, list | tuple) and messages and all(isinstance(turn, Message) for turn in messages)):
        fix = 'give [Message("user", text)], with tunesmith.Message'
        raise RecipeError(f"reply: expected a list of messages, got {str(messages)[:40]!r}; {fix}")
    for number, turn in enumerate(messages, 1):
        whole(turn.content, f"reply: message {number}")
    return messages


def like(texts: str | Iterable[str], results: list[R]) -> R | list[R]:
    """Return the only result for a single text, or all results for a list of texts."""
    return results[0] if isinstance(texts, str) else results


@dataclass(slots=True, repr=False)
class LocalModel:
    """A model that generates, classifies, scores or embeds.

    model = tunesmith.load("runs/reviews")
    model.classify("great phone").label  # one text, one result
    model.classify(["great phone", "it broke"])  # a list of texts, a list of results
    """

    policy: Policy
    template: Template
    objective: AnyObjective
    limit: int  # greatest prompt length, in tokens
    wording: str = ""  # prompt template that replaces the one of the recipe
    temperature: float = 1.0  # calibrates label probabilities
    threshold: float | None = None  # confidence from which a label is accepted
    temperatures: Mapping[str, float] = field(default_factory=dict)  # by task of a multitask model
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by task of a multitask model
    name: str = ""  # base and technique, for display
    folder: str = ""  # run folder, for display
    thinks: bool | None = None  # whether it thinks before an answer unless a call says otherwise; None: as trained

    def __repr__(self) -> str:
        labels, tasks = self.objective.known_labels, self.objective.task_objectives
        count = f": {len(labels)} labels" if labels else f": {len(tasks)} tasks" if len(tasks) > 1 else ""
        parts = (self.name, f"{self.objective.kind}{count}", self.folder)
        return f"LocalModel({', '.join(part for part in parts if part)})"

    def at(self, task: str) -> LocalModel:
        """Return the model of one task; the empty name is for a model with a single task.

        Raises:
            RecipeError: the task is unknown, or none is given for a multitask model.
        """
        tasks = self.objective.task_objectives
        if task not in tasks:
            known = (
                "this model has one task; omit the name" if SINGLE_TASK in tasks else f"name one of: {', '.join(tasks)}"
            )
            raise RecipeError(f"task {task!r}: {known}" if task else f"several tasks in one model; {known}")
        if task == SINGLE_TASK:
            return self
        return replace(
            self,
            policy=self.objective.task_policy(self.policy, task),
            objective=cast(AnyObjective, tasks[task]),
            temperature=self.temperatures.get(task, 1.0),
            threshold=self.thresholds.get(task),
        )

    def reply(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling | None = None,
        task: str = "",
        thinking: bool | None = None,
    ) -> Reply:
        """Generate the answer to a chat.

        Args:
            messages: the chat.
            sampling: sampling options; greedy by default.
            task: task of a multitask model, or empty for a plain chat.
            thinking: whether the model thinks first; by default as it was trained.

        Raises:
            RecipeError: the model has no such mode.
        """
        return (self.at(task) if task else self).replies([messages], sampling=sampling, thinking=thinking)[0]

    def replies(
        self, batch: Sequence[Sequence[Message]], *, sampling: Sampling | None = None, thinking: bool | None = None
    ) -> list[Reply]:
        """Generate the answer to each chat, in order; the arguments are those of `reply`."""
        thinking = self.thinking_mode(thinking)
        sampling = checked_sampling(sampling) or sampling_of(self.objective, thinking=thinking)
        prompts = [self.prompt(messages, answer=sampling.max_new_tokens, thinking=thinking) for messages in batch]
        answers = self._generate(prompts, sampling)
        splitter = ThoughtSplitter.of(self.template, thinking=thinking)
        replies = []
        for messages, prompt, a in zip(batch, prompts, answers, strict=True):
            whole = before_stop(splitter.decode(a.ids), sampling.stop)
            thoughts, text = splitter.split(whole)
            reply = Reply(self.template.in_json(text.strip(), messages), len(prompt), len(a.ids), a.finished)
            if thoughts:
                count, ended = splitter.thought_tokens(a.ids), splitter.ended(whole)
                reply = replace(reply, thoughts=thoughts.strip(), thought_tokens=count, thoughts_ended=ended)
            replies.append(reply)
        return replies

    def stream(
        self, messages: Sequence[Message], *, sampling: Sampling | None = None, thinking: bool | None = None
    ) -> Iterator[str]:
        """Yield the answer to a chat in chunks of text, without its thoughts."""
        for piece in self.stream_pieces(messages, sampling=sampling, thinking=thinking):
            if piece.text:
                yield piece.text

    def stream_pieces(
        self, messages: Sequence[Message], *, sampling: Sampling | None = None, thinking: bool | None = None
    ) -> Iterator[Piece]:
        """Yield the thoughts and the answer to a chat in chunks; the arguments are those of `reply`."""
        thinking = self.thinking_mode(thinking)
        sampling = checked_sampling(sampling) or sampling_of(self.objective, thinking=thinking)
        prompt = self.prompt(messages, answer=sampling.max_new_tokens, thinking=thinking)
        if (longest := self.longest(prompt, sampling)) > 0:
            sampling = replace(sampling, max_new_tokens=longest)
            splitter = ThoughtSplitter.of(self.template, thinking=thinking)
            yield from stream_pieces(self._decoder(), prompt, sampling=sampling, splitter=splitter)

    def thinking_mode(self, thinking: bool | None = None) -> bool | None:
        """Return the mode of a prompt, as `Template.prompt` takes it; None for a model that has no such mode.

        The default is that of `thinks`, else of training. Raises RecipeError if the model cannot think.
        """
        default = self.objective.thinks if self.thinks is None else self.thinks
        return thinking_mode(self.template, thinking, default=default)

    def scores(self, messages: Sequence[Message], options: Sequence[str]) -> list[float]:
        """Return the log-probability of each given answer, in nats."""
        return self.options([messages], options)[0].tolist()

    def options(self, batch: Sequence[Sequence[Message]], answers: Sequence[str]) -> Tensor:
        """Return the log-probability [B, O] of O answers to each of B chats, in nats."""
        answers = listed(answers, "scores")
        if not (batch and answers):
            raise RecipeError("scores: no answers or no prompt; give at least one of each")
        ids = option_ids(self.template, turns(batch[0]), answers)
        budget = self.prompt_budget(max(map(len, ids)))
        prompts = [self._fitted_prompt(messages, budget) for messages in batch]
        return self._option_scores(prompts, ids)

    def label_tokens(self) -> dict[str, list[int]]:
        """Return the token ids by which a decoder without a head scores each label."""
        labels = self.classifier.known_labels
        return dict(zip(labels, option_ids(self.template, self.about("text"), labels), strict=True))

    def answer(
        self, text: str, *, sampling: Sampling | None = None, thinking: bool | None = None
    ) -> Classified | Reply | list[tuple[str, float]] | float | dict[str, Any]:
        """Answer one text as the objective does.

        Args:
            text: the text.
            sampling: sampling options of generated answers; greedy by default.
            thinking: whether the model thinks before a generated answer; by default as it was trained.

        Returns:
            Labels, a number, a reply, for a masked language model the words at the mask token with their
            probabilities, or the JSON object of an objective that defines `answers`.

        Raises:
            RecipeError: the model has no such mode.
        """
        if self.objective.produces != "text":
            refuse_thinking(self.objective, thinking)
        if (own := self.objective.answers([text], self)) is not None:
            return own[0]
        if self.objective.searches:
            what, method = self.objective.results, "rank" if self.objective.retriever else "embed"
            raise RecipeError(f"answer: this model returns {what}; use model.{method}, or `tunesmith ask` with its run")
        if self.objective.produces == "labels":
            return self.classify(text)
        if self.objective.produces == "number":
            return self.predict(text)
        if self.objective.produces == "likelihood":
            return self.fill(text) if self.policy.family == "encoder" else self.complete(text, sampling=sampling)
        return self.reply([self.objective.user_message(text)], sampling=sampling, thinking=thinking)

    def answers(self, texts: Sequence[str], *, task: str = "") -> list[dict[str, Any]] | None:
        """Answer texts in the form of the objective, one JSON object each; None if it has no such form."""
        model = self.at(task)
        return model.objective.answers(listed(texts, "answers"), model)

    def outputs(self, rows: Sequence[Tokens], compute: Callable[[Batch], Tensor]) -> Tensor:
        """Compute an output [N, ...] of each of N sequences; `compute` returns those of a batch, [B, ...]."""
        return text_outputs(self.policy, rows, compute)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, *, sampling: Sampling | None = None, task: str = "", thinking: bool | None = None
    ) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[str], *, sampling: Sampling | None = None, task: str = "", thinking: bool | None = None
    ) -> list[str]: ...
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        sampling: Sampling | None = None,
        task: str = "",
        thinking: bool | None = None,
    ) -> str | list[str]:
        """Generate the answer to each prompt, with the instruction of the recipe.

        A model tuned with the domain objective completes the texts instead.

        Args:
            prompts: a user message or text, or a list of them.
            sampling: sampling options; greedy by default.
            task: task of a multitask model.
            thinking: whether the model thinks first; by default as it was trained. `replies` returns the thoughts too.

        Returns:
            One answer for a string, a list of answers for a list.

        Raises:
            RecipeError: the model has no such mode.
        """
        model, given = self.at(task), listed(prompts, "generate")
        if model.objective.produces == "likelihood":
            refuse_thinking(model.objective, thinking)
            return like(prompts, [reply.text for reply in model.complete(given, sampling=sampling)])
        instruction = model.objective.instruction
        chats = [[Message("user", f"{instruction}\n\n{prompt}" if instruction else prompt)] for prompt in given]
        return like(prompts, [reply.text for reply in model.replies(chats, sampling=sampling, thinking=thinking)])

    @overload
    def complete(self, texts: str, *, sampling: Sampling | None = None) -> Reply: ...  # type: ignore[overload-overlap]
    @overload
    def complete(self, texts: Sequence[str], *, sampling: Sampling | None = None) -> list[Reply]: ...
    def complete(self, texts: str | Sequence[str], *, sampling: Sampling | None = None) -> Reply | list[Reply]:
        """Complete texts without a chat template; the beginning of a text that is too long is cut off."""
        sampling = checked_sampling(sampling) or self.sampling
        limit = self.prompt_budget(sampling.max_new_tokens)
        starts = [beginning(text, self.template, limit=limit) for text in listed(texts, "complete")]
        refuse_empty(starts, "complete")
        answers = self._generate(starts, sampling)
        replies = [
            Reply(before_stop(self.template.decode(a.ids), sampling.stop), len(start), len(a.ids), a.finished)
            for start, a in zip(starts, answers, strict=True)
        ]
        return like(texts, replies)

    @overload
    def fill(self, texts: str, *, options: int = 5, task: str = "") -> list[tuple[str, float]]: ...  # type: ignore[overload-overlap]
    @overload
    def fill(self, texts: Sequence[str], *, options: int = 5, task: str = "") -> list[list[tuple[str, float]]]: ...
    def fill(
        self, texts: str | Sequence[str], *, options: int = 5, task: str = ""
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Predict the word at the first mask token of each text.

        Args:
            texts: a text with a mask token, or a list of such texts.
            options: number of words per text.
            task: task of a multitask model.

        Returns:
            Words and probabilities, the likeliest first; for a list of texts, one such list per text.

        Raises:
            RecipeError: the model has no masked-LM head, or a text contains no mask token.
        """
        if (model := self.at(task)) is not self:
            return model.fill(texts, options=options)
        mask = self.template.tokenizer.mask_token
        if not isinstance(self.policy.head, MaskedHead):
            raise RecipeError("fill: only an encoder tuned on texts predicts masked words; use generate or classify")
        predictions: list[list[tuple[str, float]]] = []
        for text in listed(texts, "fill"):
            ids = self.template.document(text, limit=self.limit).ids
            if self.template.tokenizer.mask_token_id not in ids:
                beyond = self.template.tokenizer.mask_token_id in self.template.document(text).ids
                fix = f"it is beyond the limit of {self.limit} tokens; shorten the text" if beyond else ""
                raise RecipeError(f"fill: no {mask} in the text; {fix or f'write {mask} in place of a word'}")
            predictions.append(masked_words(self.policy, self.template, ids, options=options))
        return like(texts, predictions)

    @overload
    def classify(self, texts: str, *, task: str = "") -> Classified: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, texts: Sequence[str], *, task: str = "") -> list[Classified]: ...
    def classify(self, texts: str | Sequence[str], *, task: str = "") -> Classified | list[Classified]:
        """Classify texts.

        Args:
            texts: a text, or a list of texts.
            task: task of a multitask model.

        Returns:
            One result for a string, a list of results for a list.

        Raises:
            RecipeError: the model was not tuned with the classify objective.
        """
        model = self.at(task)
        objective, given = model.classifier, listed(texts, "classify")
        if not given:
            return []
        settings: dict[str, Any] = {"multi": objective.label_mode == "multi", "temperature": model.temperature}
        found = classified(model.label_logits(given), objective.known_labels, threshold=model.threshold, **settings)
        return like(texts, found)

    @overload
    def predict(self, texts: str, *, task: str = "") -> float: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Sequence[str], *, task: str = "") -> list[float]: ...
    def predict(self, texts: str | Sequence[str], *, task: str = "") -> float | list[float]:
        """Predict the number of texts, in the unit of the training rows.

        Args:
            texts: a text, or a list of texts.
            task: task of a multitask model.

        Returns:
            One number for a string, a list for a list.

        Raises:
            RecipeError: the model was not tuned with the regress objective.
        """
        model, given = self.at(task), listed(texts, "predict")
        rows = [Encoded((model.regressor.question(text, model.template, limit=model.limit)[0],), "") for text in given]
        return like(texts, [number for (number,) in row_scores(model.policy, model.objective, rows)] if rows else [])

    def relevance(self, pairs: Sequence[tuple[str, str]], *, task: str = "") -> list[float]:
        """Score how well passages answer queries, from 0 to 1.

        Args:
            pairs: queries with a passage each.
            task: task of a multitask model.

        Raises:
            RecipeError: the model was not tuned with the rerank objective.
        """
        model = self.at(task)
        objective = model.objective
        if objective.produces != "ranking":
            raise RecipeError(f"rank: this model was tuned with {objective.kind} and ranks nothing; tune with rerank")
        if model.policy.head is None:
            raise RecipeError("rank: the untouched model has no head that scores pairs; tune it with rerank")
        flat = listed([text for pair in pairs for text in pair], "rank")
        rows = [
            Encoded((objective.pair(query, passage, model.template, limit=model.limit)[0],), "")
            for query, passage in zip(flat[::2], flat[1::2], strict=True)
        ]
        logits = [value for (value,) in row_scores(model.policy, objective, rows)] if rows else []
        return torch.tensor(logits).sigmoid().tolist()

    def rank(self, query: str, passages: Sequence[str], *, task: str = "") -> list[tuple[int, float]]:
        """Rank passages by how well they answer a query.

        Args:
            query: the query.
            passages: the passages.
            task: task of a multitask model.

        Returns:
            Index and score of each passage, the best first.

        Raises:
            RecipeError: the model was not tuned with the rerank objective, or `passages` is a text.
        """
        if isinstance(passages, str):
            raise RecipeError("rank: expected a list of passages, got a text; put it into a list")
        scores = self.relevance([(query, passage) for passage in passages], task=task)
        return sorted(enumerate(scores), key=lambda item: -item[1])

    def reward(self, prompt: str | Sequence[Message], answer: str) -> float:
        """Return the reward of an answer; raise RecipeError if this is not a reward model."""
        return self.rewards([(prompt, answer)])[0]

    def rewards(self, pairs: Sequence[tuple[str | Sequence[Message], str]]) -> list[float]:
        """Return the reward of each (prompt, answer), in order; raise RecipeError if this is not a reward model."""
        objective = self.objective
        if objective.produces != "score":
            raise RecipeError(
                f"reward: expected a reward model, this one was tuned with {objective.kind}; tune with reward"
            )
        rows = []
        for prompt, answer in pairs:
            chat = [Message("user", prompt)] if isinstance(prompt, str) else prompt
            question = next((turn.content for turn in chat if turn.role == "user"), None)
            if question is None:
                raise RecipeError("reward: the prompt contains no user message; add one")
            if not question.startswith(objective.instruction):  # the calling recipe may have added the same instruction
                chat = instructed(chat, objective.instruction)
            (tokens,), _ = objective.read(chat, [answer], self.template, limit=self.limit)
            rows.append(Encoded((tokens,), ""))
        return [value for (value,) in row_scores(self.policy, objective, rows)]

    @torch.no_grad()
    def label_logits(self, texts: Sequence[str]) -> Tensor:
        """Return the logits [B, K] of a head, or log-probabilities of the label words, before calibration.

        A run that scores in half precision finds the same labels; its logits are rounded where they are clear. Within
        `policy.scoring()`, all of them are.
        """
        if not texts:
            return torch.empty(0, len(self.classifier.known_labels))
        if self.policy.scoring_dtype in (None, self.policy.autocast_dtype):
            return self._label_logits(texts)
        with self.policy.scoring():
            rounded = self._label_logits(texts)
        multi = self.classifier.label_mode == "multi"
        return settled(rounded, lambda rows: self._label_logits([texts[i] for i in rows]), multi=multi)

    def _label_logits(self, texts: Sequence[str]) -> Tensor:
        head = self.policy.head
        if head is None:
            return self.options([self.about(text) for text in texts], self.classifier.known_labels)
        rows = [self.classifier.question(text, self.template, limit=self.limit)[0] for text in texts]
        return text_outputs(self.policy, rows, lambda batch: head(self.policy.pooled(batch)))

    @torch.no_grad()
    def embed(self, texts: str | Sequence[str], *, task: str = "", passage: bool = False) -> Tensor:
        """Return the pooled states [B, D] of texts, or [D] of a single text; of a model for search its vectors.

        Args:
            texts: a text or a list of texts, encoded as the objective does.
            task: task of a multitask model; required for an encoder.
            passage: of a model for search, the texts are passages, not queries.
        """
        if (task or self.policy.family == "encoder") and (model := self.at(task)) is not self:
            return model.embed(texts, passage=passage)
        rows = [self.tokens(text, passage=passage) for text in listed(texts, "embed")]
        if not rows:
            return torch.empty(0, self.policy.hidden)
        refuse_empty([row.ids for row in rows], "embed")
        states = self.policy.recall_tensor(
            self.objective.states_key,
            [row.ids for row in rows],
            lambda chosen: text_outputs(
                self.policy, [rows[i] for i in chosen], partial(self.objective.states, policy=self.policy)
            ),
        )
        return states[0] if isinstance(texts, str) else states

    @property
    def sampling(self) -> Sampling:
        """Default sampling options: greedy, with the length of the training answers and thoughts."""
        return self.sampling_for()

    def sampling_for(self, thinking: bool | None = None) -> Sampling:
        """Return the default sampling options of a mode, by default of the one the model was trained in."""
        return sampling_of(self.objective, thinking=self.thinking_mode(thinking))

    @property
    def classifier(self) -> AnyObjective:
        """The objective of a model that produces labels; RecipeError for any other model."""
        if self.objective.produces != "labels":
            raise RecipeError(
                f"classify: this model was tuned with {self.objective.kind} and has no labels; use generate or reply"
            )
        return self.objective

    @property
    def regressor(self) -> AnyObjective:
        """The objective of a model that predicts values; RecipeError for any other model."""
        if self.objective.produces != "number":
            raise RecipeError(
                f"predict: this model was tuned with {self.objective.kind} and predicts no values; tune with regress"
            )
        return self.objective

    def _decoder(self) -> Policy:
        if self.objective.produces == "number":
            raise RecipeError("generate: this model predicts a value; use model.predict")
        if self.objective.produces == "score":
            fix = "score answers with model.reward, or pairs with `tunesmith evaluate RUN --data PAIRS`"
            raise RecipeError(f"generate: a reward model cannot generate; {fix}")
        if self.policy.family != "decoder":
            raise RecipeError("generate: an encoder cannot generate; use classify or embed, or tune a decoder")
        return self.policy

    def prompt_budget(self, answer: int) -> int:
        """Return the greatest prompt length before `answer` new tokens."""
        return prompt_limit(answer, positions=self._positions(), limit=self.limit)

    def _positions(self) -> int:
        """Return the context length for prompt and answer, or 0 if the network has no limit."""
        virtual = 0 if self.policy.virtual is None else self.policy.virtual.size
        positions = positions_of(self.policy.network.config.to_dict())
        return positions - virtual if positions else 0

    def longest(self, prompt: list[int], sampling: Sampling) -> int:
        """Return the greatest number of new tokens: as requested, within the context left by the prompt."""
        positions = self._positions()
        return min(sampling.max_new_tokens, positions - len(prompt)) if positions else sampling.max_new_tokens

    def _generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[AnswerIds]:
        longest = [self.longest(prompt, sampling) for prompt in prompts]
        decoder, template = self._decoder(), self.template

        def generate(chosen: list[int]) -> Iterator[list[Any]]:
            mine = [prompts[i] for i in chosen], [longest[i] for i in chosen]
            return (list(astuple(a)) for a in generate_within(decoder, *mine, sampling=sampling, template=template))

        # Stop strings are looked for in decoded text, which depends on the words of the tokenizer.
        words = sampling.stop and sorted(template.tokenizer.get_vocab().items())
        key = ["answers", asdict(sampling), sorted(template.stop_ids), words]
        answers = decoder.recall(key, list(zip(prompts, longest, strict=True)), generate)
        return [AnswerIds(ids, finished, tuple(end), tuple(logs)) for ids, finished, end, logs in answers]

    def _option_scores(self, prompts: Sequence[list[int]], options: Sequence[list[int]]) -> Tensor:
        decoder = self._decoder()
        return decoder.recall_tensor(
            ["options", options],
            prompts,
            lambda chosen: option_scores(decoder, [prompts[i] for i in chosen], [options] * len(chosen)),
        )

    def prompt(self, messages: Sequence[Message], *, answer: int = 0, thinking: bool | None = None) -> list[int]:
        """Encode a chat; its longest message is shortened if it leaves no space for `answer` new tokens."""
        return self._fitted_prompt(messages, self.prompt_budget(answer), thinking=thinking)

    def _fitted_prompt(self, messages: Sequence[Message], budget: int, *, thinking: bool | None = None) -> list[int]:
        fitted, _ = self.template.fit(turns(messages), budget, thinking=thinking)
        return self.template.prompt(fitted, thinking=thinking)

    def about(self, text: str, wording: str = "") -> list[Message]:
        """Return the messages that ask for the label of a text, with the given or the default prompt template."""
        objective = self.classifier
        wording = wording or self.wording
        if not wording:  # the text comes last, so that it is shortened as in training
            return [objective.user_message(text)]

        def asked(part: str) -> list[Message]:
            return objective.prompt_messages(LabelledText("", part, ()), wording)

        return self.template.fit_text(text, asked, self.limit)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode examples as the objective does."""
        return [self.objective.encode(example, self.template, limit=self.limit) for example in examples]

    def tokens(self, text: str, *, passage: bool = False) -> Tokens:
        """Encode a text as the objective does, without learned tokens."""
        if self.objective.reads_texts or not self.template.chats:
            return self.objective.question(text, self.template, limit=self.limit, passage=passage)[0]
        if self.objective.produces == "likelihood":
            return Tokens.of(self.template.document(self.template.harmless(text), limit=self.limit).ids)
        return Tokens.of(self.prompt([Message("user", text)]))
