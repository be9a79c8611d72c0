"""An audit's page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from tunesmith.data.audit.finding import Audit
from tunesmith.report.html import environment

MOODS = {"blocked": "bad", "look": "unsure", "clean": "good"}
TAGS = {"blocking": "bad", "warning": "warn", "note": ""}


def sentence(audit: Audit) -> str:
    """The whole audit in one line."""
    if not audit.findings:
        return f"nothing wrong was found in {audit.rows} rows"
    counts = {word: sum(f.severity == word for f in audit.findings) for word in TAGS}
    told = ", ".join(
        f"{count} {word}{'s' if count != 1 and word != 'blocking' else ''}" for word, count in counts.items() if count
    )
    if audit.verdict == "blocked":
        kinds = ", ".join(finding.kind for finding in audit.blocking)
        return f"blocked: {kinds} must be cured before tuning ({told}, {audit.rows} rows)"
    return f"nothing blocks; look at {told} in {audit.rows} rows"


def page(audit: Audit) -> str:
    """The audit's page; everything that came from rows is escaped."""
    template = environment().get_template("audit.html.jinja")
    return template.render(a=audit, sentence=sentence(audit), mood=MOODS[audit.verdict], tags=TAGS)
