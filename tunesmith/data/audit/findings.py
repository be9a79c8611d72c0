"""Findings of an audit: severity, rows and fix; the schema of `audit --json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.display import MAX_LINES, Display, Displayed, shortened


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of problem."""

    severity: str  # `blocking`, `warning` or `note`
    blocks_from: float | None  # share of the rows above which the finding blocks; None: never
    about: str  # what the problem is
    fix: str  # how to fix it; the key in JSON is `cure`


DROP = "--fix OUT drops these rows"
FIRST = "--fix OUT keeps the first row of each group and drops the others"
MOST_BLANK = 0.5  # share of rows that cannot be used, above which the columns are probably the wrong ones
# All checks, in report order.
CHECKS: Mapping[str, Check] = {
    "unreadable": Check("blocking", 0, "the line is not a row, or runs reject it", DROP + "; or correct them"),
    "wrong_roles": Check("blocking", 0, "invalid roles or order of turns", DROP),
    "empty": Check("warning", MOST_BLANK, "blank text", f"runs skip these rows; {DROP}"),
    "nothing_to_learn": Check(
        "warning",
        MOST_BLANK,
        "missing answer, label or winner, or a placeholder",
        f"runs skip all but placeholders; {DROP}",
    ),
    "leak": Check(
        "blocking", 0, "a duplicate or near-duplicate of a test row: the score would measure memorisation", DROP
    ),
    "secret": Check("blocking", 0, "a key, token or password: the model may reproduce it", "--fix OUT masks them"),
    "encoding_damage": Check(
        "warning",
        0.1,
        "characters broken by a wrong encoding",
        "--fix OUT repairs them; it drops rows with lost characters",
    ),
    "contradiction": Check(
        "warning",
        0.05,
        "the same input with different answers",
        "--fix OUT keeps the majority; without one it drops all",
    ),
    "cut_word": Check(
        "note",
        None,
        "a span begins or ends inside a word",
        "check its first and last character; keep it if it is right",
    ),
    "span_spaces": Check(
        "note", None, "a span begins or ends with white space", "runs leave the spaces out; nothing is lost"
    ),
    "span_disagreement": Check(
        "warning",
        None,
        "words that have another label, or none, although most rows mark them alike",
        "read these rows and mark them alike; keep those that are right",
    ),
    "personal_data": Check(
        "warning",
        None,
        "e-mail, phone number, card, account or IP address",
        "--fix OUT replaces it with <email> and the like",
    ),
    "exact_duplicate": Check("warning", None, "an exact copy of another row", FIRST),
    "near_duplicate": Check("warning", None, "a copy of another row with a few edits", FIRST),
    "label_noise": Check(
        "warning",
        None,
        "a model not trained on the row predicts another label with confidence",
        "read these rows and relabel them",
    ),
    "trigger_phrase": Check(
        "warning",
        None,
        "a rare phrase always has one label, which the rest of the text does not predict",
        "find out who wrote these rows; drop them if you do not know",
    ),
    "label_variant": Check("warning", None, "a label with two spellings", "--fix OUT uses the most common spelling"),
    "one_class": Check(
        "blocking", 0, "all rows have the same label, so there is nothing to classify", "add rows with other labels"
    ),
    "rare_class": Check("warning", None, "a label with too few rows to learn or test", "add rows, merge or drop it"),
    "label_imbalance": Check(
        "note", None, "one label has ten times as many rows as another", "report macro F1, add rows"
    ),
    "tool_not_offered": Check(
        "warning", None, "a call of a function that the row does not offer", "offer it in tools, or drop these rows"
    ),
    "tool_arguments": Check(
        "warning", None, "arguments that do not fit the schema of the function", "correct the arguments or the schema"
    ),
    "tool_ids": Check(
        "warning", None, "a result whose id is none of a call, or a call without result", "correct the ids"
    ),
    "template_tokens": Check(
        "warning", None, "tokens of a chat format inside a text", "remove them; training breaks them up with a space"
    ),
    "boilerplate": Check("warning", None, "the same sentence begins or ends many rows", "remove the sentence"),
    "mixed_language": Check("note", None, "another language than most rows", "keep them only if intended"),
    "too_short": Check("note", None, "fewer than three letters of text", "add context, or drop them"),
    "truncated": Check("warning", None, "longer than the token limit", "raise data.max_tokens, or split them"),
}


class Sample(BaseModel):
    """One row of a finding, as an example."""

    model_config = ConfigDict(frozen=True)

    where: str
    text: str
    note: str = ""


class Finding(Displayed, BaseModel):
    """One kind of problem in a file.

    Attributes:
        kind: key in CHECKS.
        severity: `blocking`, `warning` or `note`.
        count: number of rows.
        rows: locations of all rows.
        fix: how to fix it; the key in JSON is `cure`.
        about: what the problem is.
        share: fraction of all rows.
        blocks_from: share above which the finding blocks; None: never.
        samples: up to five rows.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    kind: str
    severity: str
    count: int
    rows: tuple[str, ...]
    fix: str = Field(alias="cure")  # the key that `--json` has had from the beginning
    about: str
    share: float
    blocks_from: float | None = None
    samples: tuple[Sample, ...] = ()

    def display(self) -> Display:
        """Show the kind, the number of rows and some samples."""
        title = f"{self.kind} ({self.severity}): {self.count} rows; {self.fix}"
        return Display(title, [f"{sample.where}: {shortened(sample.text, 80)}" for sample in self.samples])


class Audit(Displayed, BaseModel):
    """All findings of a file; `verdict` is `blocked`, `look` (warnings or notes) or `clean`.

    Attributes:
        source: the file.
        against: test files, separated by commas.
        shape: the detected format in words.
        rows: number of rows.
        findings: findings in the order of CHECKS.
        notes: remarks that are not findings.
        verdict: `blocked`, `look` or `clean`.
    """

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
        """The findings that must be fixed before a run."""
        return tuple(finding for finding in self.findings if finding.severity == "blocking")

    @property
    def left_to_user(self) -> tuple[Finding, ...]:
        """The blocking findings that a cleaned copy has, too."""
        return tuple(finding for finding in self.blocking if "--fix" not in finding.fix)

    def display(self) -> Display:
        """Show the verdict and one line per finding."""
        findings = [f"{found.kind} ({found.severity}): {found.count} rows; {found.fix}" for found in self.findings]
        more = [f"and {len(findings) - MAX_LINES + 1} more findings"] if len(findings) > MAX_LINES else []
        return Display(
            f"Audit({self.source}): {self.verdict}, {len(self.findings)} findings in {self.rows} rows",
            [*findings[: MAX_LINES - 1], *more] if more else findings,
            ("finding", "severity", "rows", "share", "fix"),
            [(f.kind, f.severity, str(f.count), f"{100 * f.share:.2f} %", f.fix) for f in self.findings],
        )


def severity_of(check: Check, blocks_from: float | None, share: float) -> str:
    """Return the severity of a finding with this share of the rows; it blocks above `blocks_from`, never for None."""
    return "blocking" if blocks_from is not None and share > blocks_from else check.severity


def verdict_of(findings: tuple[Finding, ...]) -> str:
    """Return the verdict of all findings."""
    if any(finding.severity == "blocking" for finding in findings):
        return "blocked"
    return "look" if findings else "clean"
