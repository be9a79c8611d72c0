"""No phase of a run is silent: with a slow model, the log has a line every half minute whatever is learned.

The model is slow by a clock of the test: a forward pass takes 5 seconds of it, a fit of scikit-learn 10. The thread
that writes a line for silent stages is not running, so every line comes from the work itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.golden.runs import RUNS, tune
from tests.tiny import DECODERS, tiny_decoder, tiny_encoder
from tunesmith.cli import progress as lines
from tunesmith.events import Event
from tunesmith.models import lm_head, policy
from tunesmith.models.loading import load
from tunesmith.progress import Progress

PASS_SECONDS, FIT_SECONDS = 5.0, 10.0
# The rule of a log, and what may begin just before it applies. Loading and adapting a network check it by ten passes
# over a few tokens, which here take as long as any other.
LONGEST = max(seconds for _, seconds in lines.SILENCE) + 4 * PASS_SECONDS
COUNTED = [
    "classify-words-lora-decoder",
    "classify-linear-full-encoder",
    "classify-controls-decoder",
    "instruct-lora-decoder",
    "domain-lora-decoder",
    "domain-lora-encoder",
    "preference-dpo-lora-decoder",
    "reward-lora-encoder",
    "rl-grpo-lora-decoder",
    "multitask-lora-decoder",
]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Yield a clock that forward passes and fits move, with few rows per pass."""
    made = Clock()
    monkeypatch.setattr("tunesmith.progress.time", SimpleNamespace(monotonic=made))
    fit = LogisticRegression.fit

    def slow_fit(self: Any, *given: Any, **more: Any) -> Any:
        made.now += FIT_SECONDS
        return fit(self, *given, **more)

    monkeypatch.setattr(LogisticRegression, "fit", slow_fit)
    for module in ("inference.scoring", "evaluation.perplexity", "models.sentence_embeddings"):
        monkeypatch.setattr(f"tunesmith.{module}.scored_tokens", lambda device: 128)
    monkeypatch.setattr("tunesmith.models.generation.generate.TOKENS_PER_PASS", 128)
    monkeypatch.setattr("tunesmith.models.generation.generate.ROWS", 4)

    def quick(check: Any) -> Any:
        """Check a network by passes over a few tokens, which take no time on this clock."""

        def checked(*given: Any, **more: Any) -> Any:
            before = made.now
            outcome = check(*given, **more)
            made.now = before
            return outcome

        return checked

    for place, name in ((load, "generates"), (lm_head, "_same_logits"), (policy, "caches_keys_only")):
        monkeypatch.setattr(place, name, quick(getattr(place, name)))

    def slow_pass(module: torch.nn.Module, _: Any) -> None:
        if type(module).__name__ in ("LlamaModel", "BertModel"):
            made.now += PASS_SECONDS

    hook = torch.nn.modules.module.register_module_forward_pre_hook(slow_pass)
    yield made
    hook.remove()


class Log:
    """The seconds at which a log has a line, with or without those of loops."""

    def __init__(self, clock: Clock, patch: pytest.MonkeyPatch, *, loops: bool) -> None:
        self.clock, self.loops = clock, loops
        self.times = [clock.now]
        self.shown = [""]
        self.lines = lines.Lines(clock)
        patch.setattr(self.lines, "_write", self._write)

    def __call__(self, event: Event) -> None:
        if self.loops or not isinstance(event, Progress):
            self.lines(event)

    def _write(self, line: str) -> None:
        self.lines._last_line = self.clock.now
        self.times.append(self.clock.now)
        self.shown.append(line)

    def longest(self) -> tuple[float, str]:
        """The longest time without a line, and the line before it."""
        ends = [*self.times[1:], self.clock.now]
        return max(zip((end - start for start, end in zip(self.times, ends, strict=True)), self.shown, strict=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("name", COUNTED)
def test_no_phase_is_silent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.pipelines.tune.tune.write_reports", lambda folder: None)
    # The check of a new model ends after half a minute of real time and has a line per claim. Its many passes over a
    # few tokens would count five seconds each here.
    monkeypatch.setattr("tunesmith.pipelines.tune.tune.certificate_of", lambda base, on_event: None)
    kind = RUNS[name]["model"]
    model = (tiny_decoder if kind in DECODERS else tiny_encoder)(tmp_path / "model", kind)
    whole, stages = (Log(clock, monkeypatch, loops=loops) for loops in (True, False))

    def on_event(event: Event) -> None:
        whole(event)
        stages(event)

    tune(name, model, tmp_path, callback=on_event)
    longest, after = whole.longest()
    assert longest <= LONGEST, f"{longest:.0f} s without a line after {after!r}"
    assert stages.longest()[0] > LONGEST  # so the loops are what fills the log
