"""`python -m bench.judges`: what `votes summary` says of three real judges, and whether it finds a fourth who clicks.

Writes bench/JUDGES.md. The votes are those of PandaLM's people (g1 in ../shared/data), 682 pairs, each judged by the
same three. The fourth is simulated. In each of 200 rounds some pairs are drawn.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from tunesmith.annotation.items import FIRST, SECOND, TIE, Item, make_item
from tunesmith.annotation.rater_quality import raters
from tunesmith.annotation.summary import Summary, summarise
from tunesmith.annotation.vote_state import VOTE, VoteState
from tunesmith.annotation.vote_store import Event
from tunesmith.data.tokenization.messages import Message

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "g1_pandalm_human" / "g1_pandalm_human.jsonl"
JUDGES, CLICKER, ROUNDS = ("judge 1", "judge 2", "judge 3"), "the fourth", 200
PAIRS = (30, 50, 75, 100, 200)
CARES = (0.5, 0.6, 0.75)


def read() -> list[tuple[Item, dict[str, str]]]:
    """Each pair with what its three judges said."""
    found = []
    for n, row in enumerate(map(json.loads, DATA.read_text(encoding="utf-8").splitlines())):
        item = make_item([Message("user", f"{n}\n{row['prompt']}")], [row["chosen"], row["rejected"]], ("a", "b"))
        chosen = Counter(row["votes"]).most_common(1)[0][0]
        won, lost = (FIRST, SECOND) if item.answers[0] == row["chosen"] else (SECOND, FIRST)
        said = {0: TIE, chosen: won, 3 - chosen: lost}
        found.append((item, {name: said[vote] for name, vote in zip(JUDGES, row["votes"], strict=True)}))
    return found


def cast(rows: list[tuple[Item, dict[str, str]]], fourth: dict[str, str]) -> tuple[dict[str, Item], VoteState]:
    """The votes of the three, and those of the fourth where there are any."""
    events = list[Event]()
    for item, said in rows:
        more = {CLICKER: fourth[item.key]} if fourth else {}
        for rater, label in (said | more).items():
            events.append(Event(len(events) + 1, 0.0, rater, VOTE, item.key, {"label": label}))
    return {item.key: item for item, _ in rows}, VoteState(events)


def of_all(rows: list[tuple[Item, dict[str, str]]]) -> Summary:
    """What the summary says of the three, on all pairs."""
    items, votes = cast(rows, {})
    return summarise(items, votes, store="g1_pandalm_human")


def named(rows: list[tuple[Item, dict[str, str]]], pairs: int, care: float) -> Counter[str]:
    """In how many rounds each is named, where the fourth agrees with most of the three in this share of the pairs."""
    found = Counter[str]()
    for seed in range(ROUNDS):
        chance = random.Random(f"{pairs}/{care}/{seed}")
        some = chance.sample(rows, pairs)
        fourth = {}
        for item, said in some:
            usual = Counter(said.values()).most_common(1)[0][0]
            other = SECOND if usual == FIRST else FIRST
            fourth[item.key] = usual if chance.random() < care else other
        items, votes = cast(some, fourth)
        found.update(one.rater for one in raters(items, votes.standing()) if one.at_random)
    return found


def main() -> None:
    """Write the page."""
    rows = read()
    page, lines = of_all(rows), []
    for pairs in PAIRS:
        for care in CARES:
            found = named(rows, pairs, care)
            wrong = sum(found[judge] for judge in JUDGES)
            lines.append(f"| {pairs} | {care:.0%} | {found[CLICKER]} | {wrong} |")
    same, alpha = page.agreement.same, page.agreement.alpha
    kappas = ", ".join(f"{two.kappa:.2f}" for two in page.agreement.pairs if two.kappa is not None)
    text = f"""# Three real raters, and a fourth who clicks at random

Made by `python -m bench.judges` from {len(rows)} pairs of PandaLM, each judged by the same three raters. Its authors
removed pairs with low agreement, so these raters agree more than others may.

On all pairs two raters agree in {same:.1%}. Krippendorff's alpha is {alpha:.2f}, Cohen's kappa of each two {kappas}.
Reported as clicking at random: {", ".join(page.at_random) or "none"}.

A simulated fourth rater agrees with the majority of the three in a share of the pairs (50 % is a coin) and disagrees in
the others. Each line is from {ROUNDS} rounds with the given number of sampled pairs:

| pairs | the fourth agrees in | rounds in which the fourth is reported | times that a real rater is reported |
|---|---|---|---|
"""
    (ROOT / "bench" / "JUDGES.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print(text + "\n".join(lines))


if __name__ == "__main__":
    main()
