"""General text mixed into the training rows: what the base writes by itself, or a file of the user's.

Rehearsal of what a model knew keeps it from being overwritten; its own samples do where no corpus is at hand
(arXiv 2605.26097). The first word is drawn at random, as in data-free distillation (arXiv 2305.17888).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.config import SELF, Recipe
from tunesmith.config.recipe import REPLAY_FAR, REPLAY_NEAR
from tunesmith.config.resolve import BYTES_A_TOKEN, size_of, windows
from tunesmith.data.examples.types import Example, Text
from tunesmith.data.files import write_whole
from tunesmith.data.splits.near_duplicates import near_copies
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.errors import DataError
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext, encode_all, general_texts

# A rise of general text up to so many nats per token, and the share of general rows that is worth having then: one in
# twenty to one in ten for a field that is near, more for one that is far (Ibrahim et al. 2024, arXiv 2403.08763).
SHARES = ((0.05, 0.0), (0.2, REPLAY_NEAR), (math.inf, REPLAY_FAR))
# Samples that are written at a time.
BATCH_SIZE = 16
# Shorter samples teach next to nothing.
SHORTEST = 16
BEGINNING = re.compile(r"[A-Z][a-z]+")


def with_replay(prepared: TrainingContext, out: Path, *, on_event: EventHandler, offline: bool) -> TrainingContext:
    """The run with general rows among its training rows; they are kept in its folder, so that it goes on with them.

    Raises DataError for a file without enough text.
    """
    replay = prepared.recipe.replay
    if not replay.share:
        unused = f"nothing of {Path(replay.source).name} is mixed in: replay.share is 0"
        return prepared if replay.source == SELF else _noted(prepared, unused, on_event)
    each = general_rows(prepared)
    wanted = each * math.ceil(
        prepared.recipe.schedule.epochs
    )  # each pass its own: what comes again is learned by heart
    kept = out / "replay.jsonl"
    if not kept.exists():
        part = out / "replay.part.jsonl"
        texts = (
            _samples(prepared, wanted, part, on_event)
            if replay.source == SELF
            else _texts(prepared, wanted, offline=offline)
        )
        write_whole(kept, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        part.unlink(missing_ok=True)
    rows = _rows(prepared, kept, each, wanted)
    general = tuple(
        tuple(rows[(first + i) % len(rows)] for i in range(min(each, len(rows)))) for first in range(0, wanted, each)
    )
    mixed = len(general[0])
    note = f"{mixed} general rows mixed in ({mixed / (mixed + len(prepared.train)):.1%} of the rows)"
    if len(general) > 1:
        note += f", {len(rows)} of them over {len(general)} passes"
    source = "written by the base itself" if replay.source == SELF else f"from {Path(replay.source).name}"
    prepared = _noted(prepared, f"{note}, {source}", on_event)
    return replace(prepared, train=[*prepared.train, *general[0]], general=general)


# Texts are read until they should have so many times the windows that are wanted: some are near to held-out ones, and
# there may be more bytes to a token than is thought.
SPARE = 4


def general_rows(prepared: TrainingContext) -> int:
    """General rows that each pass gets beside the rows of one task."""
    share = prepared.recipe.replay.share
    return max(1, round(len(prepared.train) * share / (1 - share))) if share and len(prepared.tasks) == 1 else 0


def _noted(prepared: TrainingContext, note: str, on_event: EventHandler) -> TrainingContext:
    """The run with a note that is told now and stands in its report."""
    on_event(Note(note))
    return prepared.noted(note)


def lost_too_much(recipe: Recipe, rise: float) -> tuple[str, ...]:
    """An alarm with what helps, where a run lost much: a share of general rows, or what is left where it has that.

    `rise` is in nats a token.
    """
    if recipe.objective.produces != "likelihood":
        return ()
    share = next(share for most, share in SHARES if rise <= most)
    if not share:
        return ()
    cure = f"replay.share={share} mixes general rows in; a file of texts as replay.source was shown to help"
    if share <= recipe.replay.share:
        gentler = "technique=lora, " if recipe.technique.kind == "full" else ""
        cure = (
            f"general rows are mixed in already; {gentler}a lower schedule.learning_rate, fewer schedule.epochs "
            "or gates.max_general_nats keep more"
        )
    return (f"general text costs {rise:.3f} nats a token more than before: {cure}",)


def _rows(prepared: TrainingContext, kept: Path, fewest: int, wanted: int) -> list[Encoded]:
    """As many rows as are wanted, drawn by the seed where there are more. Raises DataError for fewer than `fewest`."""
    lines = kept.read_text(encoding="utf-8").split("\n")
    texts = [Text(f"replay:{number}", json.loads(line)["text"]) for number, line in enumerate(lines, 1) if line]
    limit = prepared.recipe.data.max_tokens
    rows = encode_all(prepared.recipe.objective, texts, prepared.template, limit=limit)
    if len(rows) < fewest and prepared.recipe.replay.source != SELF:
        raise DataError(
            f"{prepared.recipe.replay.source}: {len(rows)} windows of text, and replay.share asks for {fewest}; "
            "give more text, or lower replay.share"
        )
    chosen = random.Random(f"{prepared.recipe.seed}/replay").sample(range(len(rows)), min(wanted, len(rows)))
    return [rows[i] for i in chosen]


def _texts(prepared: TrainingContext, wanted: int, *, offline: bool) -> list[str]:
    """Texts of the user's file, of much text some of each, but for what is near to held-out documents."""
    split, recipe = prepared.loaded.split, prepared.recipe
    held = [*split.validation, *split.test]
    found = [example for example in general_texts(recipe, offline=offline) if isinstance(example, Text)]
    some = _apart(_some(found, SPARE * wanted, recipe), held)
    enough = windows(map(size_of, some), recipe.data.max_tokens) >= wanted
    return [example.text for example in (some if enough else _apart(found, held))]


def _apart(texts: Sequence[Text], held: Sequence[Example]) -> list[Text]:
    near = near_copies(texts, held)
    return [text for place, text in enumerate(texts) if place not in near]


def _some(texts: Sequence[Text], most: int, recipe: Recipe) -> list[Text]:
    """Texts drawn by the seed, about as much as makes so many windows: of long ones a part, so that it is many."""
    chance, limit = random.Random(f"{recipe.seed}/replay texts"), recipe.data.max_tokens
    size = max(1, most // len(texts)) * limit * BYTES_A_TOKEN
    drawn: dict[int, Text] = {}
    held = 0
    for place in chance.sample(range(len(texts)), len(texts)):
        if held >= most:
            break
        text = texts[place].text
        start = chance.randrange(len(text) - size) if len(text) > size else 0
        drawn[place] = replace(texts[place], text=text[start : start + size])
        held += windows([size_of(drawn[place])], limit)
    return [drawn[place] for place in sorted(drawn)]


def _samples(prepared: TrainingContext, wanted: int, part: Path, on_event: EventHandler) -> list[str]:
    """What the base writes after random first words, kept in `part` as it comes: a run that was stopped goes on there.

    Raises DataError where it writes nothing.
    """
    done, firsts = _done(part), _first_words(prepared)
    chance = random.Random(f"{prepared.recipe.seed}/samples")
    samples: list[str] = []
    tries = 0
    while len(samples) < wanted and tries < 4 * wanted + BATCH_SIZE:
        on_event(StageStarted(f"general rows: the base has written {len(samples)} of {wanted}"))
        prompts = [[*_start(prepared), chance.choice(firsts)] for _ in range(min(BATCH_SIZE, wanted))]
        tries += len(prompts)
        if done:
            samples += done.pop(0)
            continue
        samples += (texts := _written(prepared, prompts, prepared.recipe.seed + tries))
        with part.open("a", encoding="utf-8") as file:
            file.write(json.dumps(texts) + "\n")
    if not samples:
        finding = f"the base wrote nothing of {SHORTEST} tokens in {tries} tries"
        raise DataError(f"replay.source: {finding}; name a file of general texts, or write replay.share: 0")
    return samples[:wanted]


def _done(part: Path) -> list[list[str]]:
    """What was written, call by call, before a run was stopped; a last line that was cut is taken off the file."""
    lines = part.read_text(encoding="utf-8").split("\n")[:-1] if part.exists() else []
    if part.exists():
        write_whole(part, "".join(f"{line}\n" for line in lines))
    return [json.loads(line) for line in lines]


def _written(prepared: TrainingContext, prompts: Sequence[list[int]], seed: int) -> list[str]:
    """The texts that the base makes of these beginnings at its own temperature, but for the short ones."""
    base, template = prepared.base, prepared.template
    policy = Policy.over(base.network, family=base.family)
    policy.train(False)
    sampling = Sampling(max_new_tokens=prepared.recipe.data.max_tokens - 3, temperature=1.0, top_p=1.0, seed=seed)
    drawn = generate(policy, prompts, sampling=sampling, template=template)
    texts = [template.decode([prompt[-1], *one.ids]) for prompt, one in zip(prompts, drawn, strict=True)]
    return [text for text, one in zip(texts, drawn, strict=True) if len(one.ids) >= SHORTEST]


def _start(prepared: TrainingContext) -> list[int]:
    """What stands before a document: what the tokenizer puts before every text, else the end of the one before."""
    tokenizer = prepared.template.tokenizer
    before, _ = frame(tokenizer)
    return before or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])


def _first_words(prepared: TrainingContext) -> list[int]:
    """Ids that begin a sentence; of a tokenizer that has none, all ordinary ids."""
    tokenizer = prepared.template.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    return [i for i in ids if BEGINNING.fullmatch(str(tokenizer.decode([i])))] or ids
