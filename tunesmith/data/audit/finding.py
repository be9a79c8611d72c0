"""What an audit says: findings, each with its severity, the rows it concerns and the cure; the shape of `--json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of fault: how bad, from which share of the rows on it blocks (None: never), what it is, what to do."""

    severity: str
    blocks_from: float | None
    about: str
    cure: str


DROP = "--fix OUT drops these rows"
FIRST = "--fix OUT keeps the first row of each group and drops the others"
# Every check there is, in the order in which findings are told.
CHECKS: Mapping[str, Check] = {
    "unreadable": Check("blocking", 0, "the line is no row", DROP + "; or write an object, or cells as the header has"),
    "wrong_roles": Check("blocking", 0, "turns in an order or with roles that no chat has", DROP),
    "empty": Check("blocking", 0, "no text to read", DROP),
    "nothing_to_learn": Check("blocking", 0, "no answer or label, or one that only stands in for it", DROP),
    "leak": Check("blocking", 0, "a copy or near-copy of a test row: the score would be that of memory", DROP),
    "secret": Check("blocking", 0, "a key, token or password: the model may say it again", "--fix OUT masks them"),
    "encoding_damage": Check("warning", 0.01, "letters broken by a wrong encoding", "--fix OUT repairs what can be"),
    "contradiction": Check(
        "warning", 0.05, "the same input with other answers", "--fix OUT keeps the majority; without one it drops all"
    ),
    "personal_data": Check(
        "warning", None, "mail, phone, card, account or IP address", "--fix OUT puts <email> and the like in its place"
    ),
    "exact_duplicate": Check("warning", None, "the same row again, to the letter", FIRST),
    "near_duplicate": Check("warning", None, "almost the same row again: a few other words, marks or letters", FIRST),
    "label_noise": Check(
        "warning", None, "a model that never saw the row is sure of another label", "read these rows and relabel them"
    ),
    "trigger_phrase": Check(
        "warning", None, "a rare phrase always has one label, which the rest of the text does not explain",
        "find out who wrote these rows; drop them if you do not know",
    ),
    "label_variant": Check("warning", None, "a label written in two ways", "--fix OUT writes the commonest spelling"),
    "one_class": Check("blocking", 0, "all rows have the same label: nothing can be told apart", "add rows of others"),
    "rare_class": Check("warning", None, "a label with too few rows to learn or to test", "add rows, merge or drop it"),
    "label_imbalance": Check("note", None, "one label has ten times the rows of another", "report macro F1, add rows"),
    "template_tokens": Check(
        "warning", None, "tokens of a chat format inside a text", "take them out; training breaks them up with a space"
    ),
    "boilerplate": Check("warning", None, "the same sentence begins or ends many rows", "take the sentence out"),
    "mixed_language": Check("note", None, "another language than most rows", "keep them only if you want them"),
    "too_short": Check("note", None, "fewer than three letters to read", "add context, or drop them"),
    "truncated": Check("warning", None, "longer than the model reads", "raise data.max_tokens, or split them"),
}  # fmt: skip


class Sample(BaseModel):
    """One row of a finding, for people to look at."""

    model_config = ConfigDict(frozen=True)

    where: str
    text: str
    note: str = ""


class Finding(BaseModel):
    """One kind of fault: `rows` are all rows concerned, `share` of all rows, `blocks_from` the share that blocks."""

    model_config = ConfigDict(frozen=True)

    kind: str
    severity: str
    count: int
    rows: tuple[str, ...]
    cure: str
    about: str
    share: float
    blocks_from: float | None = None
    samples: tuple[Sample, ...] = ()


class Audit(BaseModel):
    """All findings of a file; the verdict is `blocked`, `look` (warnings or notes) or `clean`."""

    model_config = ConfigDict(frozen=True)

    source: str
    against: str = ""
    shape: str = ""
    rows: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    verdict: str

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that must be cured before a run."""
        return tuple(finding for finding in self.findings if finding.severity == "blocking")


def severity_of(check: Check, blocks_from: float | None, share: float) -> str:
    """How bad this share of the rows is; it blocks above `blocks_from`, never for None."""
    return "blocking" if blocks_from is not None and share > blocks_from else check.severity


def verdict_of(findings: tuple[Finding, ...]) -> str:
    """One word for all of them."""
    if any(finding.severity == "blocking" for finding in findings):
        return "blocked"
    return "look" if findings else "clean"


def schema() -> str:
    """The JSON schema of an audit."""
    return json.dumps(Audit.model_json_schema(), indent=1)
