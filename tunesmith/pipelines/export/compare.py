"""The comparison of an export, running in another program, with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tunesmith.data.examples.spans import trim
from tunesmith.data.examples.types import Span
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.thinking import switch_values
from tunesmith.errors import CheckpointError
from tunesmith.inference.export.compressed import SCHEMES
from tunesmith.inference.export.dtypes import SMALLEST
from tunesmith.inference.export.gguf_quantize import MIXTURES
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.scoring import text_outputs
from tunesmith.metrics.numbers import spearman
from tunesmith.metrics.task_scores import PER_ROW, SCALES, WHOLE, value
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.report.predictions import Prediction

# Minimum share of equal answers and maximum change of the score. A change by one row is always allowed.
BOUNDS = {
    "merged": (1.0, 0.0),
    "merged f16": (0.95, 0.005),
    "merged bf16": (0.90, 0.01),
    "adapter": (1.0, 0.0),
    "gguf f16": (0.95, 0.005),
    **{f"gguf {name}": (0.0, 0.05) for name in MIXTURES},
    "gguf q8_0": (0.90, 0.01),
    **{f"compressed-tensors {name}": (0.0, 0.05) for name in SCHEMES},
    f"gguf {SMALLEST}": (0.0, 0.05),  # of a metric that was not tested against the margin
}
# Maximum difference of two pooled states, relative to their norm; larger where the weights are rounded to 16 bits.
MAX_STATE_DIFFERENCE = 1e-4
MAX_ROUNDED_STATE_DIFFERENCE = {"merged f16": 0.01, "merged bf16": 0.05}
# Rows of a model that states probabilities or rewards, and label scores in all; both only read the rows.
STATED_ROWS = 200
STATED_SCORES = 2000
# Maximum difference of a probability, or of a reward relative to the largest one.
MAX_DIFFERENCE = {"merged": 1e-4, "merged f16": 0.05, "merged bf16": 0.1}
# With thoughts before the answers: fewer rows, because each answer takes several times as long.
THOUGHT_ROWS = 16
# Values are equal up to this share of the deviation of the training rows.
MAX_NUMBER_DIFFERENCE = 0.01
MAX_RANK_CHANGE = 0.001  # of a rank correlation, where near ties may swap
# Tokens of a text that a domain model completes, and tokens of the completion.
BEGINNING_TOKENS = 48
MIN_ANSWER_TOKENS = 512  # context that llama.cpp reserves for an answer


class OpenedExport(Protocol):
    """Another program that has loaded an export."""

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Encode each chat."""
        ...

    def ids(self, text: str) -> list[int]:
        """Encode a text."""
        ...

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Generate greedily, at most `longest` tokens per prompt."""
        ...


Opener = Callable[[], OpenedExport]
# Maps token ids to the pooled states [B, D] of the other program.
States = Callable[[Sequence[list[int]]], Tensor]


@dataclass(frozen=True, slots=True)
class ProgramAgreement:
    """The agreement of two programs on some rows."""

    metric: str
    rows: int
    same_answers: float  # share of equal answers or states
    same_prompts: float = 1.0  # share of prompts with equal token ids
    score_original: float | None = None  # None if the rows have no reference answers
    score_export: float | None = None
    compared: str = "answers"  # answers, states, labels, values, words or preferences
    # Of a probability, of a reward relative to the largest one, or of a number relative to the deviation of the rows.
    max_difference: float | None = None


def by_answers(model: LocalModel, rows: Sequence[Prediction], opened: Opener) -> ProgramAgreement:
    """Compare the greedy answers of both programs to the same rows."""
    template, thinking = model.template, thinking_of(model)
    rows = rows[:THOUGHT_ROWS] if thinking else rows
    chats, prompts, longest = _prompts(model, rows)
    generated = generate(model.policy, prompts, sampling=Sampling(max_new_tokens=longest), template=template)
    original = [template.decode(answer.ids).strip() for answer in generated]
    program = opened()
    texts = [template.harmless(row.question) for row in rows]
    exported_prompts = program.prompts(chats) if chats else [program.ids(text)[:BEGINNING_TOKENS] for text in texts]
    exported = program.answers(prompts, longest=longest)
    metric = model.objective.metric
    gold = [row.reference for row in rows]
    scored = all(gold) and (metric in PER_ROW or metric in WHOLE)
    splitter = ThoughtSplitter.of(template, thinking=thinking)
    # Programs return text without special tokens. Where these mark the thoughts (Gemma 4, gpt-oss), it has no answers.
    scored = scored and all(splitter.decode(answer.ids) == template.decode(answer.ids) for answer in generated)
    return ProgramAgreement(
        metric=metric,
        rows=len(rows),
        same_prompts=_equal_share(exported_prompts, prompts),
        same_answers=_equal_share(exported, original),
        score_original=value(metric, gold, [splitter.split(text)[1] for text in original]) if scored else None,
        score_export=value(metric, gold, [splitter.split(text)[1] for text in exported]) if scored else None,
    )


def llama_cpp(file: Path, *, positions: int, thinks: bool) -> LlamaCpp:
    """Open a GGUF file in llama.cpp."""
    values = switch_values(thinks)  # llama.cpp sets the switch itself otherwise
    return LlamaCpp(file, threads=torch.get_num_threads(), positions=positions, template_values=values)


def thinking_of(model: LocalModel) -> bool | None:
    """Return the mode of the prompts; None for a model that answers with something else than text."""
    return None if model.objective.produces != "text" else model.thinking_mode()


def _prompts(model: LocalModel, rows: Sequence[Prediction]) -> tuple[list[list[Message]], list[list[int]], int]:
    """Return the chat and the token ids of each row, and the most tokens of an answer; texts have no chats."""
    template, thinking = model.template, thinking_of(model)
    # Special tokens in the rows are escaped for both programs.
    texts = [template.harmless(row.question) for row in rows]
    if model.objective.produces == "likelihood":
        return [], [template.document(text, limit=BEGINNING_TOKENS).ids for text in texts], BEGINNING_TOKENS
    if model.objective.produces == "labels":
        asked = [[model.objective.user_message(text)] for text in texts]
        longest = 2 + max(len(template.answer(asked[0], label)) for label in model.objective.known_labels)
    else:
        asked = [[Message("user", text)] for text in texts]
        longest = model.sampling.max_new_tokens
    budget = model.prompt_budget(longest)
    chats = [template.fit(messages, budget, thinking=thinking)[0] for messages in asked]
    prompts = [template.prompt(chat, thinking=thinking) for chat in chats]
    return chats, prompts, min(model.longest(ids, Sampling(max_new_tokens=longest)) for ids in prompts)


def by_states(model: LocalModel, rows: Sequence[Prediction], states: States, *, form: str) -> ProgramAgreement:
    """Compare the states [B, D] that a head receives, of both programs for the same token ids.

    The name of the format determines the allowed difference.
    """
    texts = [model.tokens(row.question) for row in rows]
    original = text_outputs(model.policy, texts, model.policy.pooled)  # `embed` of rerank has vectors of length 1
    exported = states([tokens.ids for tokens in texts])
    bound = MAX_ROUNDED_STATE_DIFFERENCE.get(form, MAX_STATE_DIFFERENCE)
    same = (exported - original).norm(dim=1) <= bound * original.norm(dim=1)
    share = float(same.double().mean())
    return ProgramAgreement("states", len(rows), share, compared="states")


def by_usage(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the outputs of a model with those of the function in the README: classify, predict, reward or fill.

    Returns the share of equal labels, values, preferences or words, and the largest difference of what is stated for
    them.
    """
    if model.objective.produces == "score":
        return _by_rewards(model, rows, function)
    if model.objective.produces == "ranking":
        return _by_relevance(model, rows, function)
    if model.objective.produces == "number":
        return _by_numbers(model, rows, function)
    if model.objective.produces == "spans":
        return _by_spans(model, rows, function)
    if model.objective.produces == "likelihood":
        return _by_words(model, rows, function)
    objective = model.classifier
    multi = objective.label_mode == "multi"
    rows = rows[: max(1, min(STATED_ROWS, STATED_SCORES // len(objective.known_labels)))]
    texts = [_read_text(model, row.question) for row in rows]
    original = model.classify(texts)
    exported = [{one["label"]: one["score"] for one in answer} for answer in function(texts)]
    pairs = list(zip(original, exported, strict=True))
    differences = [abs(value - other[label]) for one, other in pairs for label, value in one.probabilities.items()]
    labels = [_labels(probabilities, multi=multi) for probabilities in exported]
    scored = not multi and all(row.gold for row in rows)
    gold = [row.gold for row in rows]
    return ProgramAgreement(
        metric=objective.metric,
        rows=len(rows),
        same_answers=_equal_share(labels, [set(one.labels) for one in original]),
        score_original=value(objective.metric, gold, [one.label for one in original]) if scored else None,
        score_export=value(objective.metric, gold, [min(one) for one in labels]) if scored else None,
        compared="labels",
        max_difference=max(differences),
    )


def _labels(probabilities: Mapping[str, float], *, multi: bool) -> set[str]:
    """Return the labels that apply, by the probability of each."""
    if multi:
        return {label for label, probability in probabilities.items() if probability >= 0.5}
    return {max(probabilities, key=probabilities.__getitem__)}


def _read_text(model: LocalModel, text: str) -> str:
    """Return a text as the model reads it: special tokens escaped, and shortened to the prompt of a decoder."""
    text = model.template.harmless(text)
    if not model.template.chats:
        return text
    if model.objective.produces == "number":
        (message,) = model.template.fit([model.objective.user_message(text)], model.limit)[0]
        return message.content[len(model.objective.user_message("").content) :]
    before = model.classifier.user_message("").content
    longest = 0 if model.policy.head is not None else max(map(len, model.label_tokens().values()))
    (message,) = model.template.fit(model.about(text), model.prompt_budget(longest))[0]
    return message.content[len(before) :]


def _by_rewards(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the rewards of both completions of each row, and the completion that is preferred."""
    pairs = []
    for row in rows:
        question, _, answers = model.template.harmless(row.question).partition("\n\nA: ")
        chosen, _, rejected = answers.partition("\n\nB: ")
        both = [(question, chosen), (question, rejected)]
        if not any(_is_shortened(model, *pair) for pair in both):
            pairs += both
        if len(pairs) == 2 * STATED_ROWS:
            break
    if not pairs:
        raise CheckpointError(f"every test row exceeds {model.limit} tokens, so none can be compared; tune with more")
    original, exported = model.rewards(pairs), [float(one) for one in function(pairs)]
    largest = max(1.0, *(abs(one) for one in original))
    preferred = [[a > b for a, b in zip(side[::2], side[1::2], strict=True)] for side in (original, exported)]
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(pairs) // 2,
        same_answers=_equal_share(preferred[1], preferred[0]),
        compared="preferences",
        max_difference=max(abs(a - b) for a, b in zip(original, exported, strict=True)) / largest,
    )


def _by_relevance(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the scores of the right passage of each query, and of the first three of both models as one text."""
    rows = rows[:STATED_ROWS]
    pairs = [(row.question, text) for row in rows for text in (row.gold, row.base, row.tuned) if text]
    original, exported = model.relevance(pairs), [float(one) for one in function(pairs)]
    differences = [abs(a - b) for a, b in zip(original, exported, strict=True)]
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(rows),
        same_answers=sum(difference <= MAX_NUMBER_DIFFERENCE for difference in differences) / len(differences),
        compared="values",
        max_difference=max(differences),
    )


def _by_numbers(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the numbers of each text; the differences are relative to the deviation of the training rows."""
    objective = model.regressor
    rows = rows[:STATED_ROWS]
    texts = [_read_text(model, row.question) for row in rows]
    original, exported = model.predict(texts), [float(one) for one in function(texts)]
    scale = objective.mean_and_scale[1]
    differences = [abs(a - b) / scale for a, b in zip(original, exported, strict=True)]
    gold = [float(row.gold) for row in rows if row.gold]  # all of them or none
    return ProgramAgreement(
        metric=objective.metric,
        rows=len(rows),
        same_answers=sum(difference <= MAX_NUMBER_DIFFERENCE for difference in differences) / len(rows),
        score_original=spearman(gold, original) if gold else None,
        score_export=spearman(gold, exported) if gold else None,
        compared="values",
        max_difference=max(differences),
    )


def _by_spans(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the spans of texts that are not longer than one window; pipelines do not divide texts as Tunesmith does.

    The spans of the pipeline are compared as `as_marked` returns them.
    """
    texts = [model.template.harmless(row.question) for row in rows]
    texts = [text for text in texts if len(model.template.document(text).ids) <= model.limit][:STATED_ROWS]
    answers = model.answers(texts)
    if not answers:
        raise CheckpointError(f"every test row exceeds {model.limit} tokens, so none can be compared; tune with more")
    original = [{Span(one["start"], one["end"], one["label"]): one["score"] for one in row["spans"]} for row in answers]
    exported = [as_marked(found, text) for text, found in zip(texts, function(texts), strict=True)]
    pairs = list(zip(original, exported, strict=True))
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(texts),
        same_prompts=1.0,
        same_answers=sum(ours.keys() == theirs.keys() for ours, theirs in pairs) / len(texts),
        compared="spans",
        max_difference=max(
            (abs(p - theirs.get(span, p)) for ours, theirs in pairs for span, p in ours.items()), default=0.0
        ),
    )


def as_marked(found: Sequence[Mapping[str, Any]], text: str) -> dict[Span, float]:
    """Return the spans of transformers' pipeline as Tunesmith marks them, each with its score.

    Some tokenizers count the space before a word to it, so that a span may begin with one. A character of several
    tokens may be in several spans there; here it belongs to the first one.
    """
    spans: dict[Span, float] = {}
    for one in found:
        start = max([one["start"], *(span.end for span in spans)])
        if (span := trim(Span(start, one["end"], one["entity_group"]), text)) is not None:
            spans[span] = float(one["score"])
    return spans


def _is_shortened(model: LocalModel, prompt: str, answer: str) -> bool:
    return model.objective.read([Message("user", prompt)], [answer], model.template, limit=model.limit)[1]


def _by_words(model: LocalModel, rows: Sequence[Prediction], function: Callable[[Any], Any]) -> ProgramAgreement:
    """Compare the words that a masked language model proposes for the fifth word of each text."""
    mask = model.template.tokenizer.mask_token
    texts = []
    for row in rows[:STATED_ROWS]:
        words = model.template.harmless(row.question).split()
        place = min(4, len(words) - 1)
        texts.append(" ".join([*words[:place], mask, *words[place + 1 :]]))
    original = model.fill(texts)
    exported = [[(one["token_str"].strip(), one["score"]) for one in answer] for answer in function(texts)]
    pairs = list(zip(original, exported, strict=True))
    differences = [abs(one[1] - other[1]) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True)]
    return ProgramAgreement(
        metric=model.objective.metric,
        rows=len(texts),
        same_answers=_equal_share([theirs[0][0] for _, theirs in pairs], [ours[0][0] for ours, _ in pairs]),
        compared="words",
        max_difference=max(differences),
    )


def overall(parts: Sequence[ProgramAgreement]) -> ProgramAgreement:
    """Combine the agreement of all tasks; the scores are those of the first task, the headline of the run."""
    rows = sum(part.rows for part in parts)
    prompts = sum(part.same_prompts * part.rows for part in parts) / rows
    answers = sum(part.same_answers * part.rows for part in parts) / rows
    return replace(parts[0], rows=rows, same_prompts=prompts, same_answers=answers)


def find_problems(
    agreements: Mapping[str, ProgramAgreement], form: str, *, allowed_change: float = 0
) -> tuple[str, ...]:
    """Return the differences, by task, that exceed the BOUNDS of the format; empty for an export that may be used.

    A larger change of the score may be allowed.
    """
    min_same, max_change = BOUNDS[form]
    max_change = max(max_change, allowed_change)
    problems = []
    for task, part in agreements.items():
        prefix = f"{task}: " if task else ""
        if part.same_prompts < 1:
            problems.append(f"{prefix}{1 - part.same_prompts:.1%} of the prompts are tokenized differently")
        if part.same_answers < min_same:
            problems.append(
                f"{prefix}{part.same_answers:.1%} of {part.rows} answers are the same, expected at least {min_same:.0%}"
            )
        allowed_difference = MAX_DIFFERENCE.get(form, 0.0)
        if part.max_difference is not None and not part.max_difference <= allowed_difference:
            kind = {"preferences": "reward", "values": "value"}.get(part.compared, "probability")
            problems.append(
                f"{prefix}a {kind} differs by {part.max_difference:.1e}, expected at most {allowed_difference:.0e}"
            )
        if part.score_original is not None and part.score_export is not None:
            change = abs(part.score_export - part.score_original)
            allowed = max(max_change, 1 / part.rows if max_change else 0)
            if part.compared == "values":
                allowed = max(allowed, MAX_RANK_CHANGE)
            if change / SCALES.get(part.metric, 1.0) > allowed + 1e-9:
                problems.append(f"{prefix}{part.metric} changes by {change:.3f}")
    return tuple(problems)


def _equal_share(values: Sequence[object], others: Sequence[object]) -> float:
    return sum(a == b for a, b in zip(values, others, strict=True)) / len(others)
