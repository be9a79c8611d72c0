"""A model on this machine that answers: the base under a plain wording, or a tuned run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tunesmith.data.examples import Message
from tunesmith.data.template import Template, Tokens
from tunesmith.data.windows import beginning
from tunesmith.errors import RecipeError
from tunesmith.inference.given import listed, refuse_empty, turns
from tunesmith.model.batch import TOKENS_PER_PASS, Batch, cut, pack
from tunesmith.model.families import positions_of, room_before
from tunesmith.model.generate import AnswerIds, before_stop, generate_within, option_scores, stream
from tunesmith.model.masked_head import MaskedHead
from tunesmith.model.policy import Policy
from tunesmith.model.sampling import Reply, Sampling
from tunesmith.objectives import Classify, Domain, Multitask, Reward
from tunesmith.recipe import AnyObjective


@dataclass(frozen=True, slots=True)
class Classified:
    """The labels of one text and the probability of each label."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The one label, or all of them joined where a text may have several."""
        return ", ".join(self.labels)

    @property
    def confidence(self) -> float:
        """Probability of the likeliest label."""
        return max(self.probabilities.values())


@dataclass(slots=True)
class LocalModel:
    """A responder and classifier over a policy.

    `limit` is the longest prompt in tokens; `wording` another way to put the question than the recipe's;
    `temperature` calibrates label probabilities, and from `threshold` on one is sure enough to answer.
    """

    policy: Policy
    template: Template
    objective: AnyObjective
    limit: int
    wording: str = ""
    temperature: float = 1.0
    threshold: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)  # of the tasks of a model of several
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def at(self, task: str) -> LocalModel:
        """The model as one of its tasks asks it; one of a single task as it is, where none is named.

        Raises RecipeError for a task that it does not have, or where several have to be told apart.
        """
        tasks = self.objective.tasks if isinstance(self.objective, Multitask) else {}
        if not tasks and not task:
            return self
        if not isinstance(self.objective, Multitask) or task not in tasks:
            known = f"name one of: {', '.join(tasks)}" if tasks else "this model has one task; leave the name out"
            raise RecipeError(f"task {task!r}: {known}" if task else f"several tasks in one model; {known}")
        policy, objective = self.objective.seen(self.policy, task), tasks[task].objective
        temperature, threshold = self.temperatures.get(task, 1.0), self.thresholds.get(task)
        return replace(self, policy=policy, objective=objective, temperature=temperature, threshold=threshold)

    def reply(self, messages: Sequence[Message], *, sampling: Sampling | None = None, task: str = "") -> Reply:
        """One answer, of a model of several tasks as one of them gives it or as to any chat."""
        return (self.at(task) if task else self).replies([messages], sampling=sampling)[0]

    def replies(self, batch: Sequence[Sequence[Message]], *, sampling: Sampling | None = None) -> list[Reply]:
        """An answer to each, in order."""
        sampling = sampling or self.sampling
        prompts = [self.prompt(messages, answer=sampling.max_new_tokens) for messages in batch]
        drawn = self._drawn(prompts, sampling)
        return [
            Reply(before_stop(self.template.decode(d.ids), sampling.stop).strip(), len(prompt), len(d.ids), d.finished)
            for prompt, d in zip(prompts, drawn, strict=True)
        ]

    def stream(self, messages: Sequence[Message], *, sampling: Sampling | None = None) -> Iterator[str]:
        """One answer, in pieces as it comes."""
        sampling = sampling or self.sampling
        prompt = self.prompt(messages, answer=sampling.max_new_tokens)
        if (longest := self.longest(prompt, sampling)) > 0:
            sampling = replace(sampling, max_new_tokens=longest)
            yield from stream(self._decoder(), prompt, sampling=sampling, template=self.template)

    def scores(self, messages: Sequence[Message], options: Sequence[str]) -> list[float]:
        """Log-probability of each given answer."""
        return self.options([messages], options)[0].tolist()

    def options(self, batch: Sequence[Sequence[Message]], answers: Sequence[str]) -> Tensor:
        """[B, O]: log-probability of every given answer after every question."""
        answers = listed(answers, "scores")
        if not (batch and answers):
            raise RecipeError("scores: of no answers, or to no question; give one of each at least")
        ids = [self.template.answer(turns(batch[0]), text) for text in answers]
        ends = self.template.end_ids if _one_begins_another(ids) else []
        ids = [[*option, *ends] for option in ids]
        prompts = [self.prompt(messages, answer=max(map(len, ids))) for messages in batch]
        return option_scores(self._decoder(), prompts, [ids] * len(prompts))

    def generate(self, prompts: Sequence[str], *, sampling: Sampling | None = None, task: str = "") -> list[str]:
        """The text answered to each prompt, asked as the recipe asks; of a model of texts, how each goes on.

        A model of several tasks has to be told which.
        """
        if task or isinstance(self.objective, Multitask):
            return self.at(task).generate(prompts, sampling=sampling)
        prompts = listed(prompts, "generate")
        if isinstance(self.objective, Domain):
            return [reply.text for reply in self.complete(prompts, sampling=sampling)]
        instruction = self.objective.instruction
        asked = [[Message("user", f"{instruction}\n\n{prompt}" if instruction else prompt)] for prompt in prompts]
        return [reply.text for reply in self.replies(asked, sampling=sampling)]

    def complete(self, texts: Sequence[str], *, sampling: Sampling | None = None) -> list[Reply]:
        """How each text goes on, no chat around it; of a text that is too long its end counts."""
        sampling = sampling or self.sampling
        room = self.room(sampling.max_new_tokens)
        starts = [beginning(text, self.template, limit=room) for text in listed(texts, "complete")]
        refuse_empty(starts, "complete")
        drawn = self._drawn(starts, sampling)
        return [
            Reply(before_stop(self.template.decode(d.ids), sampling.stop), len(start), len(d.ids), d.finished)
            for start, d in zip(starts, drawn, strict=True)
        ]

    @torch.inference_mode()
    def fill(self, texts: Sequence[str], *, options: int = 5, task: str = "") -> list[list[tuple[str, float]]]:
        """For each text the likeliest words, with probabilities, at its first mask token.

        Raises RecipeError for a model that was not tuned to find hidden words, and for a text without a mask token.
        """
        if task or isinstance(self.objective, Multitask):
            return self.at(task).fill(texts, options=options)
        mask = self.template.tokenizer.mask_token
        if not isinstance(self.policy.head, MaskedHead):
            raise RecipeError("fill: only an encoder tuned on texts finds hidden words; use generate or classify")
        found = []
        for text in listed(texts, "fill"):
            ids = self.template.document(text, limit=self.limit).ids
            if self.template.tokenizer.mask_token_id not in ids:
                beyond = self.template.tokenizer.mask_token_id in self.template.document(text).ids
                cure = f"it stands beyond the {self.limit} tokens that are read; shorten the text" if beyond else ""
                raise RecipeError(f"fill: no {mask} in the text; {cure or f'write {mask} where a word is to be found'}")
            place = ids.index(self.template.tokenizer.mask_token_id)
            batch = pack([Tokens.of(ids)]).to(self.policy.device)
            logits = self.policy.head(self.policy.states(batch)[batch.paths[0, place]]).float()
            logits[self.template.tokenizer.all_special_ids] = -torch.inf  # no word at all
            likely = logits.softmax(dim=0)
            best = likely.topk(options)
            words = [self.template.decode([i]).strip() for i in best.indices.tolist()]
            found.append(list(zip(words, best.values.tolist(), strict=True)))
        return found

    def classify(self, texts: Sequence[str], *, task: str = "") -> list[Classified]:
        """Labels and probabilities of each text. Raises RecipeError for a model that was not tuned to label."""
        if task or isinstance(self.objective, Multitask):
            return self.at(task).classify(texts)
        if not isinstance(self.objective, Classify):
            raise RecipeError(
                f"classify: this model was tuned to {self.objective.kind}, it has no labels; use generate or reply"
            )
        texts = listed(texts, "classify")
        if not texts:
            return []
        logits = self.label_logits(texts).double()  # a small temperature leaves single precision nothing of the rest
        probabilities = logits.sigmoid() if self.objective.multi else (logits / self.temperature).softmax(dim=1)
        return [self._classified(self.objective, row) for row in probabilities.tolist()]

    def reward(self, prompt: str | Sequence[Message], answer: str) -> float:
        """The score of an answer to a prompt. Raises RecipeError for a model that is no reward model."""
        return self.rewards([(prompt, answer)])[0]

    def rewards(self, asked: Sequence[tuple[str | Sequence[Message], str]]) -> list[float]:
        """The score of each (prompt, answer), in order."""
        from tunesmith.inference.judge import rewards

        return rewards(self, asked)

    @torch.no_grad()
    def label_logits(self, texts: Sequence[str]) -> Tensor:
        """[B, K]: log-probabilities of the label words, or the head's logits, before calibration."""
        assert isinstance(self.objective, Classify)
        if self.policy.head is None:
            return self.options([self.about(text) for text in texts], self.objective.labels)
        rows = [self.objective.question(text, self.template, limit=self.limit)[0] for text in texts]
        parts = [self.policy.head(self.policy.pooled(batch)).float() for batch in self._batches(rows)]
        return self._in_order(parts, rows)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, task: str = "") -> Tensor:
        """[B, D]: pooled states of the texts as the objective reads them; an encoder of several tasks is told which."""
        if task or (isinstance(self.objective, Multitask) and self.policy.family == "encoder"):
            return self.at(task).embed(texts)
        rows = [self.tokens(text) for text in listed(texts, "embed")]
        if not rows:
            return torch.empty(0, self.policy.hidden)
        refuse_empty([row.ids for row in rows], "embed")
        return self._in_order([self.policy.pooled(batch).float() for batch in self._batches(rows)], rows)

    @property
    def sampling(self) -> Sampling:
        """Greedy, as long as the training answers were."""
        return sampling_of(self.objective)

    def _decoder(self) -> Policy:
        if isinstance(self.objective, Reward):
            cure = "score answers with model.reward, or pairs with `tunesmith evaluate RUN --data PAIRS`"
            raise RecipeError(f"generate: a reward model writes no text; {cure}")
        if self.policy.family != "decoder":
            raise RecipeError("generate: an encoder writes no text; use classify or embed, or tune a decoder")
        return self.policy

    def room(self, answer: int) -> int:
        """Tokens that a prompt may have before an answer of so many."""
        return room_before(answer, positions=self._positions(), limit=self.limit)

    def _positions(self) -> int:
        """How many a prompt and its answer have together; 0 where the network says none."""
        virtual = 0 if self.policy.virtual is None else self.policy.virtual.size
        positions = positions_of(self.policy.network.config.to_dict())
        return positions - virtual if positions else 0

    def longest(self, prompt: list[int], wish: Sampling) -> int:
        """Tokens of the longest answer: as many as are wished, as long as this prompt leaves positions for them."""
        positions = self._positions()
        return min(wish.max_new_tokens, positions - len(prompt)) if positions else wish.max_new_tokens

    def _drawn(self, prompts: Sequence[list[int]], wish: Sampling) -> list[AnswerIds]:
        longest = [self.longest(prompt, wish) for prompt in prompts]
        return generate_within(self._decoder(), prompts, longest, sampling=wish, template=self.template)

    def prompt(self, messages: Sequence[Message], *, answer: int = 0) -> list[int]:
        """The ids of a question, its longest turn shortened where it leaves no room for an answer of so many."""
        fitted, _ = self.template.fit(turns(messages), self.room(answer))
        return self.template.prompt(fitted)

    def about(self, text: str, wording: str = "") -> list[Message]:
        """What is asked about a text that gets a label, in the model's wording or another."""
        objective, wording = self.objective, wording or self.wording
        assert isinstance(objective, Classify)
        if not wording:  # the text stands last, so that it gives way as in training
            return objective.messages(text)
        return self.template.fit_text(text, lambda part: objective.messages(part, wording), self.limit)

    def tokens(self, text: str) -> Tokens:
        """A text as the objective reads it, nothing of it learned."""
        if isinstance(self.objective, Classify):
            return self.objective.question(text, self.template, limit=self.limit)[0]
        if isinstance(self.objective, Domain):
            return Tokens.of(self.template.document(self.template.harmless(text), limit=self.limit).ids)
        return Tokens.of(self.prompt([Message("user", text)]))

    def _batches(self, rows: Sequence[Tokens]) -> Iterator[Batch]:
        """The rows as batches of like length, longest first."""
        for chosen in cut(_longest_first(rows), [len(row.ids) for row in rows], TOKENS_PER_PASS):
            tokens = [rows[i] for i in chosen]
            yield pack(tokens, share=self.policy.family == "decoder").to(self.policy.device)

    def _in_order(self, parts: Sequence[Tensor], rows: Sequence[Tokens]) -> Tensor:
        """Results of `_batches`, put back in the order the rows came in."""
        together = torch.cat(list(parts)).cpu()
        result = torch.empty_like(together)
        result[_longest_first(rows)] = together
        return result

    def _classified(self, objective: Classify, row: Sequence[float]) -> Classified:
        known = dict(zip(objective.labels, row, strict=True))
        if objective.multi:
            return Classified(tuple(label for label, p in known.items() if p >= 0.5), known)
        return Classified((max(known, key=lambda label: known[label]),), known)


def sampling_of(objective: AnyObjective) -> Sampling:
    """Greedy, as long as the training answers of this objective were."""
    return Sampling(max_new_tokens=objective.max_new_tokens or Sampling().max_new_tokens)


def _longest_first(rows: Sequence[Tokens]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))


def _one_begins_another(options: Sequence[list[int]]) -> bool:
    """Whether an option is the beginning of another, so that only their ends tell them apart."""
    return any(a is not b and b[: len(a)] == a for a in options for b in options)
