"""Measure on one network what training, scoring, generation and exports rely on.

`check_model` measures everything. `certificate_of`, which `tune` calls, measures what is not known of the network's
configuration yet, within bounds. Adapters are put into a copy of the network, so that it stays as it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError, TemplateError, TunesmithError, briefly
from tunesmith.events import EventHandler, StageStarted, ignore
from tunesmith.inference.export.gguf_writer import write_gguf
from tunesmith.inference.llamacpp import LlamaCpp, find_converter
from tunesmith.models.attention.packed import state_tolerance, states_alone
from tunesmith.models.batch import pack
from tunesmith.models.certificate import (
    CLAIMS,
    Certificate,
    Check,
    Measured,
    digest_of,
    keep_certificate,
    read_certificate,
)
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import keep_freed_memory, keep_randomness
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.quantization import count_parameters, resident_bytes
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.measurements import (
    difference,
    loss_of_transformers,
    scripted,
    scripted_states_alone,
    states_together,
)
from tunesmith.models.once_per_shape import versions
from tunesmith.models.policy import Policy
from tunesmith.pipelines.certify.adapted import Adapted
from tunesmith.progress import track
from tunesmith.techniques import TECHNIQUES

# What `tune` may spend on a network that it has not met: seconds, and bytes of weights that are copied.
SECONDS, COPIED_BYTES = 30.0, 2 * 1024**3
CHECK_COMMAND = "`tunesmith models check` measures it"
LATE = f"a run spends {SECONDS:.0f} s at most; {CHECK_COMMAND}"
# Claims about text that is generated.
DECODER_ONLY = ("loss", "cache", "prefix", "stop", "learned", "gguf")
NEEDS_ADAPTER = ("gradients", "peft", "merged")
# Least share of equal words of llama.cpp, whose weights are rounded to 16 bits, and how many words a prompt gets.
SAME_WORDS, WORDS = 0.9, 4
POSITIONS = 512  # context that llama.cpp reserves
LONGEST = 96  # tokens of a row of the checks

# Rows with a prefix in common, of different lengths.
SHARED = "The quick brown fox jumps over the lazy dog. "
OWN = ("We walk home along the river, and it rains the whole day.", "It is late.", "I like the phone.")
REPLY = "Yes, it is."
# A chat whose turns have words that are nowhere else.
TURNS = (
    ("system", "You are a gentle helper."),
    ("user", "Which animal is striped?"),
    ("assistant", "That is a zebra."),
    ("user", "Which metal is yellow?"),
    ("assistant", "That would be gold."),
)
ASSISTANT_WORDS, OTHER_WORDS = ("zebra", "gold"), ("gentle", "animal", "metal")


def check_model(name: str, *, on_event: EventHandler, offline: bool = False) -> Certificate:
    """Load a model, measure every claim on it, and keep the certificate.

    Args:
        name: alias, Hub id, folder, run folder or GGUF file.
        on_event: receives the stages.
        offline: use only local files.

    Raises:
        ModelError: it cannot be loaded; the message says why, and what to choose instead.
    """
    on_event(StageStarted(f"loading {name}"))
    began = time.perf_counter()
    base = load_base(name, offline=offline)
    loaded = Measured(outcome="passed").check("loads", time.perf_counter() - began)
    certificate = Subject(base).certificate(CLAIMS, known=[loaded], on_event=on_event)
    keep_certificate(certificate)
    return certificate


@keep_freed_memory()
def certificate_of(base: Base, *, on_event: EventHandler) -> Certificate:
    """Return the certificate of a loaded base, after measuring what is not kept for its configuration yet.

    The random generators and the network are left as they were. What needs a copy of the weights is not measured above
    COPIED_BYTES, and nothing more is measured once SECONDS have passed. GGUF is left to `export`.
    """
    kept = read_certificate(digest_of(base))
    known = kept.checks if kept else [Measured(outcome="passed").check("loads")]
    missing = {*CLAIMS} - {check.name for check in known} - {"gguf"}
    if kept and not missing:
        return kept
    on_event(StageStarted(f"checking {base.name}, a model that is new here"))
    certificate = Subject(base, deadline=time.perf_counter() + SECONDS).certificate(missing, known=known)
    # What time was too short for is left to the next run.
    in_time = tuple(check for check in certificate.checks if check.note != LATE)
    keep_certificate(certificate.model_copy(update={"checks": in_time}))
    return certificate


class Subject:
    """A loaded base that is measured; its network is not changed, but for packed attention, which every run installs.

    Nothing more is measured after the deadline, as `time.perf_counter` gives it.
    """

    def __init__(self, base: Base, *, deadline: float | None = None) -> None:
        self.base = base
        self.deadline = deadline
        self.network = base.network
        self.bound = state_tolerance(base.network)

    @cached_property
    def policy(self) -> Policy:
        """The base as objectives see it."""
        return Policy.over(self.network, family=self.base.family)

    @property
    def how(self) -> str:
        """The way in which the rows of a batch run."""
        if self.policy.packs:
            return "packed"
        padded = self.base.family == "encoder" or self.policy.rules.pads_right
        return "padded" if padded else "one by one"

    @cached_property
    def template(self) -> Template:
        """The tokenizer with its chat format. Raises TemplateError."""
        return Template(self.base.tokenizer, chat=self.base.family == "decoder")

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of texts with a prefix in common."""
        return [self.base.tokenizer(SHARED + text, verbose=False)["input_ids"][:LONGEST] for text in OWN]

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of chats with a prefix in common, longest first."""
        return sorted((self.template.prompt([Message("user", SHARED + text)]) for text in OWN), key=len, reverse=True)

    @cached_property
    def reply(self) -> list[int]:
        """Token ids of an answer and the end of its turn."""
        return [*self.template.answer([Message("user", OWN[0])], REPLY), *self.template.end_ids]

    @property
    def learned_rows(self) -> list[Tokens]:
        """The rows of a loss: of a decoder, prompts with a reply that is learned."""
        if self.base.family == "encoder":
            return [Tokens.of(row) for row in self.rows]
        return [Tokens.of(prompt, self.reply) for prompt in self.prompts]

    @cached_property
    def alone(self) -> list[Tensor]:
        """The states of `rows`, by transformers."""
        return [states_alone(self.network, row) for row in self.rows]

    def certificate(
        self, names: Iterable[str], *, known: Sequence[Check], on_event: EventHandler = ignore
    ) -> Certificate:
        """Measure these claims, keys of CLAIMS, and return the certificate with the checks that are known already."""
        began = time.perf_counter()
        checks = {check.name: check for check in known}
        wanted = {*names}
        with keep_randomness(self.network.device), _as_it_was(self.network), quiet():
            for name in track([name for name in CLAIMS if name in wanted], "checking the model", unit="claims"):
                if name not in checks:  # the claims of adapters are measured together
                    on_event(StageStarted(CLAIMS[name]))
                    checks |= self._measure(name)
            refused = {part().kind: part().refusal(self.network, family=self.base.family) for part in TECHNIQUES}
        return Certificate(
            model=self.base.name,
            family=self.base.family,
            kind=self.network.config.model_type,
            digest=digest_of(self.base),
            parameters=count_parameters(self.network.parameters()),
            rows=self.how,
            checks=tuple(checks[name] for name in CLAIMS if name in checks),
            refused_techniques={kind: reason for kind, reason in refused.items() if reason},
            environment=versions(),
            seconds=round(time.perf_counter() - began, 3),
        )

    def _measure(self, name: str) -> dict[str, Check]:
        """Measure one claim, or all that need an adapter."""
        if (skipped := self._skipped(name)) is not None:
            return {name: skipped.check(name)}
        if name in NEEDS_ADAPTER:
            return self._adapter_checks()
        measure: Callable[[], Measured] = getattr(self, f"_{name}")
        return {name: _timed(name, measure)}

    def _skipped(self, name: str) -> Measured | None:
        """Return why a claim is not measured; None if it is."""
        if self.base.family == "encoder" and name in DECODER_ONLY:
            return Measured(outcome="does not apply", note="an encoder does not generate text")
        if name in NEEDS_ADAPTER and any(value.dtype == torch.uint8 for value in self.network.parameters()):
            return Measured(outcome="not measured", note=f"the weights have 4 bits; {CHECK_COMMAND}, on whole ones")
        if self.deadline is None:
            return None
        if time.perf_counter() > self.deadline:
            return Measured(outcome="not measured", note=LATE)
        if name in NEEDS_ADAPTER and resident_bytes(self.network) > COPIED_BYTES:
            limit = f"a run copies {COPIED_BYTES // 1024**3} GiB of weights at most"
            return Measured(outcome="not measured", note=f"{limit}; {CHECK_COMMAND}")
        return None

    # One method per claim, named after it.

    def _loss(self) -> Measured:
        rows = self.learned_rows
        with torch.no_grad():
            ours = float(self.policy.sum_nll(pack(rows).to(self.policy.device)))
        theirs = loss_of_transformers(self.network, rows)
        return Measured(abs(ours - theirs) / theirs, self.bound)

    def _packed(self) -> Measured:
        found = states_together(self.policy, self.rows, share=False)
        return Measured(difference(found, self.alone), self.bound, self.how)

    def _cache(self) -> Measured:
        return Measured(self._generation_error(self.prompts[:1]), self.bound)

    def _prefix(self) -> Measured:
        rows = difference(states_together(self.policy, self.rows, share=True), self.alone)
        errors = [self._generation_error(self.prompts, copies=copies) for copies in (1, 2)]
        return Measured(float(torch.tensor([rows, *errors]).max()), self.bound)  # unlike Python's `max`, keeps NaN

    def _generation_error(self, prompts: Sequence[list[int]], *, copies: int = 1) -> float:
        """Return the largest difference between states of generation and those of a forward pass."""
        _, states = scripted(self.policy, prompts, self.reply, template=self.template, copies=copies)
        said = self.reply[: len(states[0])]
        return difference(states, scripted_states_alone(self.network, prompts, said, copies=copies))

    def _stop(self) -> Measured:
        # A second reply is on offer after the end of the turn, and must not be said.
        answers, _ = scripted(self.policy, self.prompts, self.reply * 2, template=self.template)
        end = str(self.base.tokenizer.decode(self.reply[-1:]))
        said = {self.template.decode(answer.ids).strip() for answer in answers}
        if said == {REPLY} and all(answer.end for answer in answers):
            return Measured(outcome="passed", note=f"at {end.strip() or repr(end)}")
        return Measured(outcome="failed", note=f"an answer did not stop at {end!r}: {sorted(said)[0]!r}")

    def _learned(self) -> Measured:
        turns = [Message(role, text) for role, text in TURNS]
        try:
            tokens = self.template.chat(turns)
        except TemplateError:  # many templates have no system role
            tokens = self.template.chat(turns[1:])
        marked = list(zip(tokens.ids, tokens.learn, strict=True))
        learned, rest = (self.base.tokenizer.decode([i for i, learn in marked if learn == on]) for on in (True, False))
        missing = [word for word in ASSISTANT_WORDS if word not in learned or word in rest]
        foreign = [word for word in OTHER_WORDS if word in learned]
        if missing or foreign:
            wrong = f"{missing[0]!r} of the assistant is not" if missing else f"{foreign[0]!r} of another role is"
            return Measured(outcome="failed", note=f"{wrong} learned")
        return Measured(outcome="passed", note=f"{tokens.learned} of {len(tokens.ids)} tokens of the probe chat")

    def _gguf(self) -> Measured:
        try:
            find_converter()
        except ModelError as error:
            return Measured(outcome="not measured", note=str(error))
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            file = Path(folder) / "model.gguf"
            try:
                write_gguf(self.network, self.base.tokenizer, file, name=self.base.name)
            except ModelError as error:
                return Measured(outcome="refused", note=str(error).removeprefix(f"{self.base.name}: "))
            try:
                program = LlamaCpp(file, threads=torch.get_num_threads(), positions=POSITIONS, slots=1)
                theirs = program.answers(self.prompts, longest=WORDS)
            except ModelError as error:  # the same stops `export`; only other answers are wrong
                return Measured(outcome="refused", note=str(error).removeprefix(f"{file.name}: "))
        sampling = Sampling(temperature=0.0, max_new_tokens=WORDS)
        answers = generate(self.policy, self.prompts, sampling=sampling, template=self.template)
        ours = [self.template.decode(answer.ids).strip() for answer in answers]
        same = sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours)
        note = f"{same:.0%} of {len(ours)} answers of {WORDS} tokens are the same, with weights in f16"
        return Measured(outcome="passed" if same >= SAME_WORDS else "failed", note=note)

    def _adapter_checks(self) -> dict[str, Check]:
        """Measure everything about adapters on one copy: its gradients, the saved adapter in PEFT, and its merging."""
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as name:
            try:
                adapted = Adapted.of(self.base, self.policy, max(self.rows, key=len), Path(name))
            except Exception as error:  # any library may reject a network that it does not know
                failure = Measured(outcome="failed", note=f"no adapter: {briefly(error)}")
                return {key: failure.check(key) for key in NEEDS_ADAPTER}
            measured = [_timed("gradients", lambda: adapted.gradients(self.learned_rows))]
            measured += [_timed("merged", adapted.merged), _timed("peft", adapted.peft)]
        return {check.name: check for check in measured}


def _timed(name: str, measure: Callable[[], Measured]) -> Check:
    """Return the check of a measurement; an error of any library is a failure with its message."""
    began = time.perf_counter()
    try:
        measured = measure()
    except TunesmithError as error:
        measured = Measured(outcome="failed", note=str(error))
    except Exception as error:
        measured = Measured(outcome="failed", note=f"{type(error).__name__}: {briefly(error)}")
    return measured.check(name, time.perf_counter() - began)


@contextmanager
def _as_it_was(network: Any) -> Iterator[None]:
    """Enter a context in which a network does not train, after which mode and trainable parameters are as before."""
    mode = network.training
    trainable = [(value, value.requires_grad) for value in network.parameters()]
    network.eval()
    try:
        yield
    finally:
        network.train(mode)
        for value, flag in trainable:
            value.requires_grad_(flag)
