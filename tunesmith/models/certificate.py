"""The certificate of a model: what was measured on that very network, and where it is kept.

Two networks of one family may differ in a window, a cache or a scale, so nothing here is looked up by name.
`models/measurements` measures the network, `pipelines/certify` all of it. No torch here: reports have certificates.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.data.files import read_page, write_whole
from tunesmith.data.user_cache import cache_dir
from tunesmith.display import Display, Displayed, model_label
from tunesmith.errors import TunesmithError
from tunesmith.models.once_per_shape import versions

if TYPE_CHECKING:
    from tunesmith.models.loading.load import Base

# Raised when a check measures something else, so that kept certificates are measured again.
REVISION = 1
# Entries of a configuration that say where it came from, not what the network computes.
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "generation_config")

# What is certified, in the order in which it is measured.
CLAIMS: dict[str, str] = {
    "loads": "every weight comes from the files",
    "loss": "the loss is that of transformers",
    "packed": "rows that run together = each row alone",
    "cache": "generation with a cache = forward pass without",
    "prefix": "a shared prefix = the prefix repeated in every row",
    "stop": "generation stops where the template ends a turn",
    "learned": "the learned tokens are those of the assistant",
    "gradients": "gradients reach every targeted layer and no other",
    "peft": "the saved adapter, opened in PEFT, gives the same logits",
    "merged": "the merged weights give the logits of the adapter",
    "gguf": "llama.cpp answers the same from a GGUF file",
}
Outcome = Literal["passed", "failed", "refused", "not measured", "does not apply"]


class Check(BaseModel):
    """One claim and what was measured."""

    model_config = ConfigDict(frozen=True)

    name: str  # a key of CLAIMS
    outcome: Outcome
    difference: float | None = None  # largest one, relative to the norm of what is compared
    bound: float | None = None  # largest difference that is only rounding
    note: str = ""  # how it works here, or the reason and the fix
    seconds: float = 0.0

    @property
    def claim(self) -> str:
        """The claim as a sentence."""
        return CLAIMS.get(self.name, self.name)

    @property
    def figure(self) -> str:
        """The difference for a table."""
        return "" if self.difference is None else f"{self.difference:.0e}" if self.difference else "0"

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.note if self.difference is None else f"relative difference {self.figure}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one measurement."""

    difference: float | None = None
    bound: float | None = None
    note: str = ""
    outcome: Outcome | None = None  # None: passed if the difference is within the bound

    def check(self, name: str, seconds: float = 0.0) -> Check:
        """Return the check of a key of CLAIMS; a difference that is not a number is a failure."""
        outcome = self.outcome
        difference = self.difference
        if outcome is None:
            assert difference is not None
            assert self.bound is not None
            outcome = "passed" if difference <= self.bound else "failed"
        return Check(
            name=name,
            outcome=outcome,
            difference=difference if difference is not None and math.isfinite(difference) else None,
            bound=self.bound,
            note=self.note,
            seconds=round(seconds, 3),
        )


class Certificate(Displayed, BaseModel):
    """The claims about one network with their outcomes. Kept by `digest`, and part of every report."""

    model_config = ConfigDict(frozen=True)

    model: str  # as the user named it when it was measured
    family: str  # decoder or encoder
    kind: str  # transformers' model_type
    digest: str  # of the configuration, the chat template and the versions of the libraries
    parameters: int
    rows: str  # how the rows of a batch run: packed, padded or one by one
    checks: tuple[Check, ...] = ()
    refused_techniques: dict[str, str] = {}  # technique -> why this network cannot be tuned with it
    environment: dict[str, str] = {}  # versions of the libraries
    seconds: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """The failed claims as warnings of a report."""
        return tuple(f"the base model fails a check ({check.claim}): {check.reason}" for check in self.failed)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The claims that do not hold."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def display(self) -> Display:
        """Show the outcome and what failed; every check in a table."""
        rows = [(check.claim, check.outcome, check.figure, check.note) for check in self.checks]
        lines = [f"{check.claim}: {check.reason}" for check in self.failed]
        title = f"Certificate({model_label(self.model)}): {self.kind} {self.family}, {self.summary()}"
        return Display(title, lines, ("claim", "outcome", "difference", "note"), rows)

    def summary(self) -> str:
        """Return how many claims hold, as a phrase."""
        outcomes = [check.outcome for check in self.checks if check.outcome != "does not apply"]
        words = [f"{outcomes.count('passed')} of {len(outcomes)} claims hold"]
        words += [f"{n} {word}" for word in ("failed", "refused", "not measured") if (n := outcomes.count(word))]
        return ", ".join(words)


def digest_of(base: Base) -> str:
    """Return 16 hex digits that are equal for networks with equal results.

    Covers the configuration, the chat template, the dtypes, the device and the versions of the libraries, but not the
    weights: what holds of a network holds of every checkpoint of its shape.
    """
    config = {key: value for key, value in base.network.config.to_dict().items() if key not in VOLATILE}
    dtypes = sorted({str(value.dtype) for value in base.network.parameters()})  # torch.uint8 holds two 4-bit weights
    computed = [dtypes, base.network.device.type, base.folder is None]
    chat = [str(base.tokenizer.chat_template), str(base.tokenizer.eos_token)]
    parts = [REVISION, versions(), config, chat, computed]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def read_certificate(digest: str) -> Certificate | None:
    """Return the certificate that is kept for a digest; None if there is none that can be read."""
    with suppress(OSError, TunesmithError):
        return read_page(_file(digest), Certificate)
    return None


def keep_certificate(certificate: Certificate) -> bool:
    """Keep a certificate in the user's cache and return whether it could be written."""
    try:
        _file(certificate.digest).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(certificate.digest), certificate.model_dump_json(indent=1))
    except (OSError, TunesmithError):  # without a cache, it is measured again next time
        return False
    return True


def _file(digest: str) -> Path:
    return cache_dir() / "certificates" / f"{digest}.json"
