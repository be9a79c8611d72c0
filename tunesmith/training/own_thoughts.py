"""Thoughts that the base model writes for rows without any, so that tuning on them keeps its thinking.

A thinking model that is tuned on plain answers forgets to think. `objective.thinking: keep` lets the base think about
each prompt, keeps thoughts only where they lead to the answer of the row, and trains these rows with thinking on and
off. Thoughts are sampled first (rejection sampling, as in RFT, arXiv 2308.01825). Rows that the base does not solve are
asked again with the answer as a hint (rationalization, STaR, arXiv 2203.14465); the hint is not part of the trained
prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tunesmith.data.examples.types import Chat, Example, Reference
from tunesmith.data.stored import joined
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.metrics.task_scores import PER_ROW
from tunesmith.models.generation.generate import generate, sample
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.objectives import Instruct
from tunesmith.objectives.instruct import accepted, asked, has_thoughts, reference
from tunesmith.phases import phase
from tunesmith.progress import track
from tunesmith.training.journal import append_call, finished_calls
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy

# Samples per prompt, and their sampling: what the authors of Qwen3 and DeepSeek-R1 recommend for thinking.
SAMPLES = 4
TEMPERATURE = 0.6
TOP_P = 0.95
# Rows per call. Each call is kept, so that an interrupted run continues behind it.
ROWS_PER_CALL = 32
# Score from which an answer counts as the one of the row; 1, the same answer, for the other metrics.
RIGHT = {"rouge_l": 0.5, "chrf": 50.0}
HINT = '(For checking: the expected answer is "{answer}". Work out why, without mentioning this remark.)'
# Thoughts that mention the hint would teach the tuned model to refer to something that its prompts do not contain.
GIVEN_AWAY = ("expected answer", "remark", "for checking")


@dataclass(frozen=True, slots=True)
class OwnThoughts:
    """The result for one row: `how` is sampled, hinted or none."""

    where: str
    thoughts: str
    how: str


@dataclass(frozen=True, slots=True)
class _Thinker:
    """The base model, asked to think about the prompts of rows."""

    policy: Policy
    template: Template
    objective: Instruct
    limit: int  # tokens of prompt, thoughts and answer
    seed: int

    def think(self, chats: Sequence[Chat]) -> list[OwnThoughts]:
        """Return thoughts for each row, found by sampling or with a hint; none where neither leads to its answer."""
        found: dict[int, OwnThoughts] = {}
        for how, hinted in (("sampled", False), ("hinted", True)):
            left = [i for i in range(len(chats)) if i not in found]
            thoughts = self._candidates([chats[i] for i in left], hinted=hinted)
            leading = self._leading([chats[i] for i in left], thoughts)
            found |= {i: OwnThoughts(chats[i].where, text, how) for i, text in zip(left, leading, strict=True) if text}
        return [found.get(i, OwnThoughts(chat.where, "", "none")) for i, chat in enumerate(chats)]

    def _candidates(self, chats: Sequence[Chat], *, hinted: bool) -> list[list[str]]:
        """Sample finished thoughts for each row; without a hint only those before the right answer."""
        if not chats:
            return []
        questions = [asked(chat, HINT.format(answer=reference(chat)) if hinted else "") for chat in chats]
        prompts = [self._prompt(question) for question in questions]
        budget = self.objective.max_thinking_tokens + self.objective.max_new_tokens
        sampling = Sampling(max_new_tokens=budget, temperature=TEMPERATURE, top_p=TOP_P, seed=self.seed + hinted)
        samples = sample(self.policy, prompts, count=SAMPLES, sampling=sampling, template=self.template)
        opens = self.template.opens(thinking=True)
        candidates: list[list[str]] = []
        for chat, completions in zip(chats, samples, strict=True):
            texts = [self.template.decode_thinking(completion.ids) for completion in completions if completion.finished]
            split = [self.template.split_thoughts(text, open=opens) for text in texts]
            candidates.append(
                [
                    thoughts
                    for thoughts, answer in split
                    if thoughts and answer and (not _gives_away(thoughts) if hinted else self._is_right(chat, answer))
                ]
            )
        return [sorted(set(texts), key=len) for texts in candidates]

    def _leading(self, chats: Sequence[Chat], candidates: Sequence[Sequence[str]]) -> list[str]:
        """Return the shortest thoughts of each row from which alone the base arrives at the right answer."""
        pairs = [(i, thoughts) for i, texts in enumerate(candidates) for thoughts in texts]
        if not pairs:
            return [""] * len(chats)
        prompts = [self._prompt(asked(chats[i]), thoughts) for i, thoughts in pairs]
        sampling = Sampling(max_new_tokens=self.objective.max_new_tokens)
        answers = generate(self.policy, prompts, sampling=sampling, template=self.template)
        leading = [""] * len(chats)
        for (i, thoughts), answer in zip(pairs, answers, strict=True):
            if not leading[i] and self._is_right(chats[i], self.template.decode(answer.ids).strip()):
                leading[i] = thoughts
        return leading

    def _prompt(self, messages: Sequence[Message], thoughts: str = "") -> list[int]:
        """Encode a prompt, shortened so that thoughts and answer fit behind it, with finished thoughts if given."""
        budget = self.limit - self.objective.max_thinking_tokens - self.objective.max_new_tokens
        fitted, _ = self.template.fit(messages, max(budget, self.limit // 2), thinking=True)
        return self.template.prompt(fitted, thinking=True, thoughts=thoughts)

    def _is_right(self, chat: Chat, answer: str) -> bool:
        metric = self.objective.metric
        gold: list[Reference] = [accepted(chat)]
        return float(PER_ROW[metric](gold, [answer])[0]) >= RIGHT.get(metric, 1.0)


def with_own_thoughts(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> TrainingContext:
    """Add rows with thoughts of the base model to the training and validation rows of a task with `thinking: keep`.

    The thoughts are kept in `out/thoughts.jsonl`, so that a resumed run uses the same and does not repeat the work.

    Args:
        prepared: the context of one task.
        out: its run folder.
        on_event: receives notes and the progress of the base.

    Returns:
        The context with further rows and a note for the report; unchanged without rows to think about.
    """
    objective = prepared.recipe.objective
    if not isinstance(objective, Instruct):
        return prepared
    split = prepared.loaded.split
    train, validation = (_thoughtless(objective, rows) for rows in (split.train, split.validation))
    if not train:
        return prepared
    on_event(StageStarted(f"the base model thinks about {len(train) + len(validation)} rows"))
    out.mkdir(parents=True, exist_ok=True)
    policy = base_policy(prepared)
    policy.train(False)
    limit, seed = prepared.recipe.data.max_tokens, prepared.recipe.seed
    thinker = _Thinker(policy, prepared.template, objective, limit, seed)
    with phase("own thoughts", whole=True):
        found = _think([*train, *validation], thinker, out / "thoughts.jsonl")
    more = [_with_thoughts(chat, own.thoughts) for chat, own in zip([*train, *validation], found, strict=True)]

    def encoded(chats: Iterable[Chat]) -> list[Encoded]:
        rows = (row for chat in chats for row in objective.encode_all(chat, prepared.template, limit=limit))
        return [row for row in rows if row.sequences[0].learned]

    kept = encoded(chat for chat in more[: len(train)] if has_thoughts(chat))
    prepared = replace(
        prepared,
        train=joined(prepared.train, kept),
        validation=joined(prepared.validation, encoded(chat for chat in more[len(train) :] if has_thoughts(chat))),
        facts=replace(
            prepared.facts,
            learned_tokens=prepared.facts.learned_tokens + sum(row.sequences[0].learned for row in kept),
        ),
    )
    hows = [own.how for own in found[: len(train)]]
    note = (
        f"the base model's own thoughts lead to the answer in {len(kept)} of {len(train)} rows without thoughts "
        f"({hows.count('sampled')} sampled, {hows.count('hinted')} with the answer as a hint): these are trained with "
        "thinking on and off, the others with thinking off"
    )
    on_event(Note(note))
    return prepared.noted(note)


def _thoughtless(objective: Instruct, examples: Sequence[Example]) -> list[Chat]:
    """Return the rows that are to keep the model's own thoughts and have none."""
    chats = [example for example in examples if isinstance(example, Chat)]
    return [chat for chat in chats if objective.mode_of(chat) == "keep" and not has_thoughts(chat)]


def _with_thoughts(chat: Chat, thoughts: str) -> Chat:
    """Return the prompt and the reference answer of a row, the answer with thoughts and the only one learned."""
    answer = chat.messages[chat.reference_index]
    context = [replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in asked(chat)]
    messages = (*context, replace(answer, thoughts=thoughts))
    return replace(chat, messages=messages, reference_index=-1)


def _gives_away(thoughts: str) -> bool:
    return any(phrase in thoughts.lower() for phrase in GIVEN_AWAY)


def _think(chats: Sequence[Chat], thinker: _Thinker, file: Path) -> list[OwnThoughts]:
    """Return the thoughts of each row; calls that are in the file are not made again."""
    calls = [chats[start : start + ROWS_PER_CALL] for start in range(0, len(chats), ROWS_PER_CALL)]
    finished = finished_calls(file, list[OwnThoughts])
    for number, call in enumerate(track(calls, "thinking", unit="rows", total=len(chats), size=len)):
        if number < len(finished):
            continue
        found = replace(thinker, seed=thinker.seed + 2 * number).think(call)
        finished.append(found)
        append_call(file, [asdict(own) for own in found])
    return [own for call in finished for own in call]
