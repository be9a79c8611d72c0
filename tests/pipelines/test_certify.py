"""The certificate: every claim holds of a sound network, fails of one that is not, and is measured once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bases import base
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.events import Event
from tunesmith.models import once_per_shape
from tunesmith.models.attention import packed
from tunesmith.models.certificate import CLAIMS, Certificate, Measured, digest_of, read_certificate
from tunesmith.models.generation import generate
from tunesmith.models.lm_head import LanguageHead
from tunesmith.models.world import World
from tunesmith.pipelines.certify import adapted, certify
from tunesmith.pipelines.certify.certify import Subject, certificate_of, check_model

LOADS = Measured(outcome="passed").check("loads")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def outcome(subject: Subject, name: str) -> tuple[str, str]:
    certificate = subject.certificate([name], known=[LOADS])
    check = next(check for check in certificate.checks if check.name == name)
    return check.outcome, check.note


@pytest.mark.long
def test_every_claim_holds_of_a_sound_decoder(cache: Path, tiny_llama: Path):
    pytest.importorskip("xllamacpp")
    certificate = check_model(str(tiny_llama), on_event=lambda event: None, offline=True)
    assert [check.name for check in certificate.checks] == list(CLAIMS)
    assert {check.outcome for check in certificate.checks} == {"passed"}
    assert all(check.difference < 1e-5 for check in certificate.checks if check.difference is not None)
    assert certificate.rows == "packed"
    assert read_certificate(certificate.digest) == certificate
    assert certificate.summary() == "11 of 11 claims hold"
    assert "11 of 11 claims hold" in repr(certificate)


def test_an_encoder_has_no_claims_about_generated_text(cache: Path, tiny_bert: Path):
    certificate = check_model(str(tiny_bert), on_event=lambda event: None, offline=True)
    outcomes = {check.name: check.outcome for check in certificate.checks}
    assert {name for name, found in outcomes.items() if found == "does not apply"} == {*certify.DECODER_ONLY}
    assert {found for name, found in outcomes.items() if name not in certify.DECODER_ONLY} == {"passed"}


def leaks(patch: pytest.MonkeyPatch) -> Subject:
    subject = Subject(base("llama"))
    assert subject.policy.packs
    mask = packed.Level.mask

    def everything(self: packed.Level, **options: Any) -> Tensor | None:
        found = mask(self, **options)
        return None if found is None else torch.ones_like(found)

    patch.setattr(packed.Level, "mask", everything)
    patch.setattr(packed.F, "scaled_dot_product_attention", _without_causal(packed.F.scaled_dot_product_attention))
    return subject


def _without_causal(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *states, **options: attention(*states, **{**options, "is_causal": False})


def scales(patch: pytest.MonkeyPatch) -> Subject:
    subject = Subject(base("llama"))
    head = subject.policy.language_head
    assert head is not None
    patch.setattr(LanguageHead, "sum_nll", lambda self, states, targets: states.sum() * 0 + 1.0)
    return subject


def forgets(patch: pytest.MonkeyPatch) -> Subject:
    feed = generate._DecodingState.feed

    def shifted(self: Any, policy: Any, ids: Tensor, real: Tensor) -> Tensor:
        if self.cache.get_seq_length():  # one token too few is in the cache
            self.cache.crop(self.cache.get_seq_length() - 1)
            self.mask = self.mask[:, :-1]
        return feed(self, policy, ids, real)

    patch.setattr(generate._DecodingState, "feed", shifted)
    return Subject(base("llama"))


def never_stops(patch: pytest.MonkeyPatch) -> Subject:
    subject = Subject(base("llama"))
    subject.template.stop_ids = frozenset()
    return subject


def learns_everything(patch: pytest.MonkeyPatch) -> Subject:
    chat = Template.chat

    def whole(self: Template, messages: Any) -> Tokens:
        tokens = chat(self, messages)
        return Tokens(tokens.ids, [True] * len(tokens.ids))

    patch.setattr(Template, "chat", whole)
    return Subject(base("llama"))


def trains_the_base(patch: pytest.MonkeyPatch) -> Subject:
    adapt = type(adapted.ADAPTER).adapt

    def loose(self: Any, network: Any, **options: Any) -> Any:
        policy = adapt(self, network, **options)
        network.get_input_embeddings().weight.requires_grad_(True)
        names = {name for name, value in policy.trainable() if "lora" in name}
        patch.setattr(type(policy), "trainable", lambda one: _only(one, names))
        return policy

    patch.setattr(type(adapted.ADAPTER), "adapt", loose)
    return Subject(base("llama"))


def _only(policy: Any, names: set[str]) -> Any:
    return ((name, value) for name, value in policy.network.named_parameters() if name in names)


def saves_another(patch: pytest.MonkeyPatch) -> Subject:
    save = type(adapted.ADAPTER).save

    def wrong(self: Any, policy: Any, folder: Path) -> None:
        other = copy.deepcopy(policy.adapter.state_dict())
        with torch.no_grad():
            for _, value in policy.trainable():
                value.mul_(0.5)
        save(self, policy, folder)
        policy.adapter.load_state_dict(other)

    patch.setattr(type(adapted.ADAPTER), "save", wrong)
    return Subject(base("llama"))


def merges_nothing(patch: pytest.MonkeyPatch) -> Subject:
    patch.setattr("peft.PeftModel.merge_and_unload", lambda self: self.unload(), raising=False)
    patch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda self: self.unload())
    return Subject(base("llama"))


BROKEN = {
    "packed": leaks,
    "loss": scales,
    "cache": forgets,
    "stop": never_stops,
    "learned": learns_everything,
    "gradients": trains_the_base,
    "peft": saves_another,
    "merged": merges_nothing,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_claim_fails_of_a_network_of_which_it_is_not_true(name: str, monkeypatch: pytest.MonkeyPatch):
    assert outcome(Subject(base("llama")), name)[0] == "passed"
    with monkeypatch.context() as patch:
        found, note = outcome(BROKEN[name](patch), name)
    assert found == "failed", note


def test_a_prefix_that_is_shared_wrongly_fails(monkeypatch: pytest.MonkeyPatch):
    subject = Subject(base("llama"))
    together = certify.states_together

    def one_off(policy: Any, rows: Sequence[list[int]], *, share: bool) -> list[Tensor]:
        states = together(policy, rows, share=share)
        return [state.roll(1, dims=0) for state in states] if share else states

    monkeypatch.setattr(certify, "states_together", one_off)
    assert outcome(subject, "prefix")[0] == "failed"
    assert outcome(subject, "packed")[0] == "passed"


def test_an_error_of_a_library_is_a_failure_with_its_message(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel for this layer")

    monkeypatch.setattr(certify, "loss_of_transformers", broken)
    assert outcome(Subject(base("llama")), "loss") == ("failed", "RuntimeError: no kernel for this layer")


def test_a_run_measures_once_and_leaves_network_and_chance_alone(cache: Path):
    found = base("llama")
    found.network.requires_grad_(False)
    before = copy.deepcopy(found.network.state_dict())
    chance = torch.get_rng_state()
    told: list[Event] = []
    first = certificate_of(found, on_event=told.append)
    assert len(told) == 1
    assert "gguf" not in {check.name for check in first.checks}
    assert certificate_of(found, on_event=told.append) == first
    assert len(told) == 1
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(value.requires_grad or value.grad is not None for value in found.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in found.network.state_dict().items())


def test_a_run_measures_only_what_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    found = base("llama")
    first = certificate_of(found, on_event=lambda event: None)
    certify.keep_certificate(first.model_copy(update={"checks": first.checks[:3]}))
    measured: list[str] = []
    measure = Subject._measure
    monkeypatch.setattr(Subject, "_measure", lambda self, name: measured.append(name) or measure(self, name))
    second = certificate_of(found, on_event=lambda event: None)
    assert {check.name for check in second.checks} == {check.name for check in first.checks}
    assert measured[0] == "cache"
    assert not {check.name for check in first.checks[:3]} & {*measured}


def test_a_run_stops_measuring_in_time_and_copies_no_big_network(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(certify, "COPIED_BYTES", 1000)
    checks = {check.name: check for check in certificate_of(base("llama"), on_event=lambda event: None).checks}
    assert {name for name, check in checks.items() if check.outcome == "not measured"} == {*certify.NEEDS_ADAPTER}
    assert "`tunesmith models check` measures it" in checks["peft"].note
    monkeypatch.setattr(certify, "SECONDS", -1.0)
    checks = {check.name: check for check in certificate_of(base("qwen3"), on_event=lambda event: None).checks}
    assert {check.outcome for name, check in checks.items() if name != "loads"} == {"not measured"}
    monkeypatch.setattr(certify, "SECONDS", 30.0)  # the next run has time
    checks = {check.name: check for check in certificate_of(base("qwen3"), on_event=lambda event: None).checks}
    assert checks["packed"].outcome == "passed"


def test_another_configuration_or_template_is_another_model():
    plain = base("llama")
    assert digest_of(base("llama")) == digest_of(plain)
    other = base("llama")
    other.network.config.rope_parameters["rope_theta"] *= 2
    assert digest_of(other) != digest_of(plain)
    chat = base("llama")
    chat.tokenizer.chat_template += " "
    assert digest_of(chat) != digest_of(plain)


def test_without_a_writable_cache_a_run_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TUNESMITH_CACHE", str(blocked))
    told: list[Event] = []
    found = base("llama")
    assert (
        certificate_of(found, on_event=told.append).checks == certificate_of(found, on_event=told.append).checks or told
    )
    assert len(told) == 2


def test_a_failed_claim_is_a_warning_with_its_measurement():
    check = Measured(difference=0.25, bound=1e-3).check("packed")
    certificate = Certificate(
        model="m", family="decoder", kind="llama", digest="0", parameters=1, rows="packed", checks=(LOADS, check)
    )
    assert certificate.warnings == (
        "the base model fails a check (rows that run together = each row alone): relative difference 2e-01",
    )
    assert Measured(difference=float("nan"), bound=1.0).check("loss").outcome == "failed"
    assert replace(Measured(), outcome="refused", note="why").check("gguf").note == "why"


def test_a_property_of_a_large_network_is_measured_once_for_its_shape(cache: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[str] = []

    def holds(network: Any, *, answer: bool = True) -> bool:
        measured.append(type(network).__name__)
        return answer

    kept = once_per_shape.once_per_shape(holds)
    one, other = base("llama").network, base("llama").network
    assert [kept(one) for _ in range(2)] == [True, True]
    assert len(measured) == 2  # of a small one each time
    assert not cache.exists()
    monkeypatch.setattr(once_per_shape, "LARGE", 1)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    assert [kept(one), kept(one), kept(other)] == [True] * 3  # other weights, one shape
    assert len(measured) == 3
    assert [kept(one, answer=False) for _ in range(2)] == [False, False]  # what does not hold is measured again
    assert len(measured) == 5
    wider = copy.deepcopy(one)
    wider.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 65, bias=False)
    for changed in (wider, one.to(torch.bfloat16)):
        assert kept(changed)
    assert len(measured) == 7
    one.config.of_another_type = {1: "a", "b": 2}
    for change in ("code_digest", "bits_of"):  # of another version of this package, or another processor
        assert [kept(one), kept(one)] == [True] * 2
        monkeypatch.setattr(once_per_shape, change, lambda *_: "another")
    assert [kept(one), kept(one)] == [True] * 2
    assert len(measured) == 10
    for file in (cache / "shapes").iterdir():
        file.write_bytes(b"")
    assert kept(one)
    assert len(measured) == 11
    monkeypatch.setattr(once_per_shape, "current_world", lambda: World(rank=0, size=2))
    assert kept(other)
    assert len(measured) == 12  # with the other processes, whose caches may differ
