"""Runs in other programs' formats: run there after they are written, compared, and told in the report."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests import tiny
from tests.data.test_thinking import FAMILIES, templates
from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.pipelines.tune.test_domain import on_texts
from tests.tiny_families import FAMILIES as NETWORKS
from tunesmith.data.examples.types import Chat
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, ModelError, RecipeError, Refused
from tunesmith.evaluation.predict import answer
from tunesmith.inference.export import formats as room
from tunesmith.inference.export.compressed import compress
from tunesmith.inference.export.formats import merged
from tunesmith.inference.export.gguf_quantize import GgufWeights, _kernels
from tunesmith.inference.export.gguf_writer import write_gguf
from tunesmith.inference.identify import identify, read_manifest
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.metrics.significance import MarginTest
from tunesmith.models.generation.generate import AnswerIds
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct
from tunesmith.pipelines.export.compare import ProgramAgreement, by_answers, find_problems
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.pipelines.export.smallest import TESTED, HeldOutRows, prompts_of
from tunesmith.pipelines.verify import make
from tunesmith.report.code_snippets import transformers_lines
from tunesmith.report.predictions import Prediction, read_predictions
from tunesmith.report.run_data import read_run_data
from tunesmith.report.schema import Export, read_report
from tunesmith.training.run_folder import exclusive_lock

pytestmark = pytest.mark.usefixtures("small_world")
NAMES = {"merged": "transformers", "adapter": "transformers and PEFT", "gguf": "llama.cpp"}


@pytest.fixture(scope="module")
def decoder(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decoder")
    return tune(
        recipe(place, answers(), "llama", schedule={"probe": False}, objective="instruct"), place / "run"
    ).folder


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.pipelines.export.export.write_reports", lambda folder: None)


def made(run: Path, kind: str, out: Path, numbers: str = "") -> Export:
    return export(run, ExportRequest.of(kind, numbers), out=out, on_event=lambda event: None, offline=True)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["merged", "adapter", "gguf"])
def test_the_other_program_answers_every_row_alike_and_the_report_says_so(decoder: Path, tmp_path: Path, kind: str):
    found = made(decoder, kind, tmp_path / "out")
    assert (found.same_prompts, found.same_answers, found.faults) == (1.0, 1.0, ())
    assert found.score_export == found.score_original is not None
    assert found.checked == NAMES[kind]
    assert found in read_report(decoder).exports


@pytest.mark.long
@pytest.mark.parametrize("kind", ["merged", "adapter", pytest.param("gguf", marks=pytest.mark.slow)])
def test_a_model_that_could_think_is_asked_there_without_thoughts_too(tmp_path: Path, kind: str):
    parts = {"schedule": {"probe": False}, "objective": "instruct"}
    run = tune(recipe(tmp_path, answers(), "qwen3", **parts), tmp_path / "run").folder
    found = made(run, kind, tmp_path / "out")
    assert (found.same_prompts, found.same_answers) == (1.0, 1.0)


@pytest.fixture(scope="module")
def thinker(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that thinks unless it is asked not to."""
    place = tmp_path_factory.mktemp("thinker")
    objective = {"kind": "instruct", "think_by_default": True, "max_thinking_tokens": 16}
    parts = {"schedule": {"probe": False}, "objective": objective, "ledger": False}
    return tune(recipe(place, answers(), "qwen3", **parts), place / "run").folder


@pytest.mark.long
@pytest.mark.parametrize("kind", ["merged", "adapter", "gguf"])
def test_a_model_that_thinks_by_default_does_so_there_and_can_be_asked_not_to(thinker: Path, tmp_path: Path, kind: str):
    found = made(thinker, kind, tmp_path / "out")
    assert (found.same_prompts, found.same_answers) == (1.0, 1.0)
    if kind != "gguf":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        turns = [{"role": "user", "content": "hi"}]
        prompts = {
            name: tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **switch)
            for name, switch in (
                ("default", {}),
                ("on", {"enable_thinking": True}),
                ("off", {"enable_thinking": False}),
            )
        }
        assert prompts["default"] == prompts["on"] == prompts["off"].removesuffix("<think>\n\n</think>\n\n")
        assert prompts["on"] != prompts["off"]


@pytest.mark.long
def test_a_model_that_answers_at_once_keeps_its_switch_in_transformers(tmp_path: Path):
    parts = {"schedule": {"probe": False}, "objective": "instruct", "ledger": False}
    run = tune(recipe(tmp_path, answers(), "qwen3", **parts), tmp_path / "run").folder
    made(run, "adapter", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "hi"}]
    ends = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **switch).endswith(
            "</think>\n\n"
        )
        for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert ends == [True, False, True]


@pytest.mark.parametrize(("kind", "score"), [("gemma4", None), ("smollm3", 1.0)])
def test_answers_are_scored_only_where_thoughts_can_be_separated_in_plain_text(
    monkeypatch: pytest.MonkeyPatch, kind: str, score: float | None
):
    form = templates(kind)[0]
    ids = form.tokenizer(FAMILIES[kind].thoughts + "Four.", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("tunesmith.pipelines.export.compare.generate", lambda *_, **__: [AnswerIds(ids, True)])
    model: Any = SimpleNamespace(
        template=form,
        objective=Instruct(metric="exact_match", think_by_default=True),
        policy=None,
        sampling=Sampling(max_new_tokens=8),
        thinking_mode=lambda: True,
        prompt_budget=lambda answer: 200,
        longest=lambda prompt, sampling: 8,
    )
    program: Any = SimpleNamespace(
        prompts=lambda chats: [form.prompt(chats[0], thinking=True)],
        answers=lambda prompts, longest: [form.decode(ids).strip()],
    )
    row = Prediction(where="rows:1", question="2+2?", gold="Four.", base="", tuned="")
    found = by_answers(model, [row], lambda: program)
    assert (found.same_answers, found.score_original, found.score_export) == (1.0, score, score)


@pytest.mark.long
@pytest.mark.parametrize("odd", ["ends elsewhere", "begins unsaid", "ends by a name of its own"])
def test_other_programs_begin_and_end_where_an_odd_base_was_tuned_to(tmp_path: Path, odd: str):
    base = tiny.odd_ends(tmp_path / "base", odd)
    parts = {"schedule": {"probe": False, "epochs": 6}, "objective": "instruct", "model": str(base)}
    run = tune(
        recipe(tmp_path, [row | {"answer": "ok"} for row in answers()], "llama", **parts), tmp_path / "run"
    ).folder
    assert {row.tuned for row in read_predictions(run)} == {"ok"}  # it learned to end
    for kind in ("merged", "adapter", "gguf"):
        found = made(run, kind, tmp_path / kind)
        assert (found.same_prompts, found.same_answers, found.faults) == (1.0, 1.0, ())
    assert "eos_token_id=" in "".join(transformers_lines(read_run_data(run), base="BASE")) or odd == "begins unsaid"


@pytest.mark.parametrize("kind", ["merged", pytest.param("gguf", marks=pytest.mark.slow)])
def test_a_run_on_texts_goes_on_with_them_there_too(tmp_path: Path, kind: str):
    run = tune(on_texts(tmp_path, "llama", schedule={"epochs": 1, "probe": False}), tmp_path / "run").folder
    found = made(run, kind, tmp_path / "out")
    assert (found.same_prompts, found.same_answers) == (1.0, 1.0)


@pytest.mark.long
def test_an_adapter_in_gguf_answers_over_its_base_as_the_merged_file_does(decoder: Path, tmp_path: Path):
    made(decoder, "adapter", tmp_path / "adapter")
    made(decoder, "gguf", tmp_path / "merged")
    base = room.merged(decoder / "model", read_manifest(decoder / "model"), offline=True)
    bare = base.policy.network.from_pretrained(read_manifest(decoder / "model").base)
    room.write_gguf(bare, base.template.tokenizer, tmp_path / "base.gguf", name="base")
    prompts = [[1, 40 + i, 50, 60, 70] for i in range(8)]
    sides = [
        LlamaCpp(file, threads=1, positions=128, adapter=adapter).answers(prompts, longest=6)
        for file, adapter in (
            (tmp_path / "base.gguf", tmp_path / "adapter" / "adapter.gguf"),
            (tmp_path / "merged" / "model.gguf", None),
            (tmp_path / "base.gguf", None),
        )
    ]
    assert sides[0] == sides[1] != sides[2]


def test_an_export_that_answers_otherwise_is_refused_after_it_was_told(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = room.write_merged

    def spoilt(model: object, folder: Path, out: Path, *, dtype: str) -> None:
        whole(model, folder, out, dtype=dtype)  # type: ignore[arg-type]
        weights = load_file(out / "model.safetensors")
        save_file(
            {name: -value for name, value in weights.items()}, out / "model.safetensors", metadata={"format": "pt"}
        )

    monkeypatch.setattr("tunesmith.pipelines.export.export.write_merged", spoilt)
    with pytest.raises(Refused, match=r"answers are the same, expected at least 100%;.*do not use it"):
        made(decoder, "merged", tmp_path / "out")
    assert read_report(decoder).exports[-1].faults


@pytest.mark.slow
def test_no_gguf_file_is_left_of_a_family_that_llama_cpp_computes_otherwise(tmp_path: Path):
    # llama.cpp has the layers of the published models built in, and these have others.
    parts = {"model": str(NETWORKS["gemma3_text"].write(tmp_path / "base")), "schedule": {"probe": False}}
    run = tune(recipe(tmp_path, answers(), "llama", objective="instruct", **parts), tmp_path / "run").folder
    with pytest.raises(Refused, match="answers are the same.*; it was removed; nearest that works: --format merged"):
        made(run, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_gguf_file_that_answers_otherwise_is_told_and_removed(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other(network: Any, *rest: Any, **options: Any) -> None:
        write_gguf(network.from_pretrained(read_manifest(decoder / "model").base), *rest, **options)

    monkeypatch.setattr(room, "write_gguf", other)
    with pytest.raises(Refused, match=r"answers are the same, expected at least 95%.*; it was removed; nearest"):
        made(decoder, "gguf", tmp_path / "out")
    assert read_report(decoder).exports[-1].faults
    assert not (tmp_path / "out").exists()


def test_the_adapter_of_an_encoder_is_compared_by_the_states_that_its_head_reads(tmp_path: Path):
    run = tune(recipe(tmp_path, reviews(), "bert", schedule={"probe": False}), tmp_path / "run").folder
    found = made(run, "adapter", tmp_path / "adapter")
    assert (found.metric, found.compared, found.same_answers) == ("states", "states", 1.0)
    assert (tmp_path / "adapter" / "head.safetensors").exists()
    with pytest.raises(RecipeError, match=r"which an encoder cannot; nearest: --format merged"):
        made(run, "gguf", tmp_path / "gguf")


@pytest.mark.long
@pytest.mark.parametrize("technique", ["lora", "ia3", "prompt", "prefix"])
def test_the_adapter_of_a_decoder_that_answers_through_a_head_opens_over_its_base(tmp_path: Path, technique: str):
    parts = {"technique": technique, "objective": {"kind": "classify", "output": "linear"}}
    run = tune(recipe(tmp_path, reviews(), "llama", schedule={"probe": False}, **parts), tmp_path / "run").folder
    found = made(run, "adapter", tmp_path / "adapter")
    assert (found.metric, found.same_answers, found.faults) == ("states", 1.0, ())


@pytest.mark.long
@pytest.mark.parametrize(("kind", "objective"), [("llama", "instruct"), ("gpt2", "instruct"), ("bert", "classify")])
def test_an_adapter_learned_over_four_bits_is_compared_over_four_bits(tmp_path: Path, kind: str, objective: str):
    pytest.importorskip("bitsandbytes")
    parts = {"technique": {"kind": "lora", "rank": 4, "quantize": "nf4"}, "schedule": {"probe": False}}
    rows = answers() if objective == "instruct" else reviews()
    run = tune(recipe(tmp_path, rows, kind, objective=objective, **parts), tmp_path / "run").folder
    for form, numbers in (("adapter", ""), ("merged", ""), ("merged", "f16")):
        found = made(run, form, tmp_path / f"{form}{numbers}", numbers)
        assert (found.same_prompts, found.same_answers, found.faults) == (1.0, 1.0, ())
    if kind == "llama":
        chosen = smallest(run, tmp_path / "smallest", margin=99).smallest
        assert chosen is not None
        assert chosen.chosen != "f16"
        assert all(layer.kept for layer in chosen.layers[1:])  # compared with the base in four bits, dequantized
    assert identify(tmp_path / "adapter").quantize == "nf4"
    assert not (tmp_path / "adapter" / "adapter.gguf").exists()
    if kind != "bert":
        asked, options = [Message("user", "fox?")], ["a fox", "no"]
        known = load(run / "model").scores(asked, options)
        assert open_model(tmp_path / "adapter").scores(asked, options) == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize(("numbers", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_merged_model_in_16_bits_takes_half_the_disk_and_is_scored_again(
    decoder: Path, tmp_path: Path, numbers: str, dtype: torch.dtype
):
    found = made(decoder, "merged", tmp_path / "out", numbers)
    assert (found.format, found.faults) == (f"merged {numbers}", ())
    assert found.score_original is not None
    assert found.score_export is not None
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


def test_numbers_that_a_format_has_not_are_refused_with_those_it_has(decoder: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"--dtype bf16: not supported by gguf; use f16 or q8_0 or "):
        ExportRequest.of("gguf", "bf16")
    model = room.merged(decoder / "model", read_manifest(decoder / "model"), offline=True)
    next(model.policy.network.parameters()).data.fill_(1e6)
    with pytest.raises(ModelError, match=r"--dtype f16: a value of .* overflows; use bf16 or f32"):
        room.write_merged(model, decoder / "model", tmp_path, dtype="f16")


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_tokens_before_each_row_are_exported_as_an_adapter_only(tmp_path: Path, kind: str):
    parts = {"technique": {"kind": kind, "tokens": 4}, "schedule": {"probe": False, "epochs": 1}}
    run = tune(recipe(tmp_path, answers(), "llama", objective="instruct", **parts), tmp_path / "run").folder
    assert made(run, "adapter", tmp_path / "adapter").same_answers == 1.0
    with pytest.raises(RecipeError, match=rf"{kind} learns a soft prompt.*--format adapter"):
        made(run, "merged", tmp_path / "merged")


def test_full_tuning_leaves_no_adapter(tmp_path: Path):
    parts = {"technique": "full", "schedule": {"probe": False, "epochs": 1, "learning_rate": 1e-3}}
    run = tune(recipe(tmp_path, answers(), "llama", objective="instruct", **parts), tmp_path / "run").folder
    assert made(run, "merged", tmp_path / "merged").same_answers == 1.0
    with pytest.raises(RecipeError, match=r"full tuning leaves no adapter; nearest that works: --format merged"):
        made(run, "adapter", tmp_path / "adapter")


def test_a_folder_that_holds_something_else_is_left_alone(decoder: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file: contains other files; choose another --out"):
        made(decoder, "merged", tmp_path / "file")
    with pytest.raises(CheckpointError, match="contains other files; choose another --out"):
        made(decoder, "merged", tmp_path / "out")
    assert (tmp_path / "out" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("part", ["model", "checkpoints/last"])
def test_a_folder_of_a_run_is_not_taken_for_an_older_export(decoder: Path, tmp_path: Path, part: str):
    run = shutil.copytree(decoder, tmp_path / "run")
    if not (run / part).exists():  # a finished run has no checkpoints
        shutil.copytree(run / "model", run / part)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match="contains other files"):
        made(run, "merged", run / part)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("form", "score", "said"),
    [
        ("gguf f16", 0.90, ()),
        ("gguf f16", 0.89, ()),  # one row of a hundred
        ("gguf f16", 0.88, ("accuracy changes by 0.020",)),
        ("merged", 0.89, ("accuracy changes by 0.010",)),
    ],
)
def test_a_score_may_move_by_one_row_or_by_the_bound(form: str, score: float, said: tuple[str, ...]):
    found = ProgramAgreement("accuracy", 100, 1.0, score_original=0.90, score_export=score)
    assert find_problems({"": found}, form) == said
    assert find_problems({"french": found}, form) == tuple(f"french: {one}" for one in said)


def test_a_score_of_a_hundred_may_move_a_hundred_times_as_far():
    moved = ProgramAgreement("chrf", 64, 62 / 64, score_original=49.3, score_export=49.0)
    assert find_problems({"": moved}, "gguf f16") == ()
    assert find_problems({"": replace(moved, score_export=47.0)}, "gguf f16") == ("chrf changes by 2.300",)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["q8_0", "q5_k_m", "iq4_xs"])
def test_a_quantized_file_has_what_training_rows_use_and_answers_in_llama_cpp(
    decoder: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.pipelines.export.export.find_problems", lambda *given, **named: ())  # eight rows
    measured = []
    measure = room.measure_importance
    monkeypatch.setattr(room, "measure_importance", lambda *given: measured.append(measure(*given)) or measured[0])
    found = made(decoder, "gguf", tmp_path / "out", dtype)
    assert (found.format, found.same_prompts) == (f"gguf {dtype}", 1.0)
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"} <= measured[0].keys()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "manifest.json", "model.gguf"]


@pytest.fixture(scope="module")
def challenged(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a challenge; leads of random models are small."""
    run = shutil.copytree(decoder, tmp_path_factory.mktemp("challenged") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "LEAST_LEAD", 0.03)
        patch.setattr(make, "GENERAL", 256)
        (run / "challenge.json").write_text(make.challenge_of(run, offline=True).model_dump_json())
    return run


@pytest.mark.long
@pytest.mark.parametrize("kind", ["merged", "adapter", "gguf"])
def test_an_export_is_asked_the_challenge_of_its_run(challenged: Path, tmp_path: Path, kind: str):
    found = made(challenged, kind, tmp_path / "out")
    assert (found.verdict, found.verified[:7]) == ("tuned", "tuned: ")
    assert read_report(challenged).exports[-1] == found
    request = ExportRequest.of(kind, verify=False)
    left_out = export(challenged, request, out=tmp_path / "out", on_event=print, offline=True)
    assert (left_out.verdict, left_out.verified) == (None, "")


@pytest.mark.long
def test_another_verdict_is_an_error_where_answers_are_equal_and_stated_where_bits_are_few(
    challenged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = json.loads((challenged / "challenge.json").read_text())
    for prompt in page["prompts"]:
        prompt["tuned"] = prompt["tuned"] and {"text": "otherwise", "ends": True}
    run = shutil.copytree(challenged, tmp_path / "run")
    (run / "challenge.json").write_text(json.dumps(page))
    with pytest.raises(Refused, match=r"not the tuned model: something else: 0 of \d+ prompts.*do not use it"):
        made(run, "merged", tmp_path / "merged")
    assert read_report(run).exports[-1].verdict == "something else"
    monkeypatch.setattr("tunesmith.pipelines.export.export.find_problems", lambda *given, **named: ())  # eight rows
    found = made(run, "gguf", tmp_path / "gguf", "q2_k")
    assert (found.verdict, found.faults) == ("something else", ())
    (run / "challenge.json").write_text("{")
    broken = made(run, "merged", tmp_path / "merged")
    assert broken.verdict is None
    assert broken.verified.startswith("not verified (")
    (run / "challenge.json").unlink()
    assert made(run, "merged", tmp_path / "merged").verified == "not verified (the run has no challenge.json)"


@pytest.mark.long
def test_an_undecided_verdict_is_stated_and_removes_nothing(
    challenged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judged = SimpleNamespace(verdict="undecided", sentence="undecided: 20 of 21 prompts")
    monkeypatch.setattr("tunesmith.pipelines.export.export.verify", lambda *given, **named: judged)
    found = made(challenged, "gguf", tmp_path / "out")
    assert (found.verdict, found.verified, found.faults) == ("undecided", judged.sentence, ())
    assert (tmp_path / "out" / "model.gguf").is_file()


@pytest.mark.long
@pytest.mark.parametrize("error", [OSError("no port"), RuntimeError("engine died"), KeyError("choices")])
def test_an_engine_that_fails_at_the_end_loses_neither_the_export_nor_its_report(
    challenged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def failing(*given: Any, **named: Any) -> None:
        assert read_report(challenged).exports[-1].folder == str(tmp_path / "out")  # also if the process ends here
        raise error

    monkeypatch.setattr("tunesmith.pipelines.export.export.verify", failing)
    found = made(challenged, "adapter", tmp_path / "out")
    assert (found.verdict, found.verified) == (None, f"not verified ({error})")
    assert read_report(challenged).exports[-1] == found


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "stored"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_weights_of_eight_bits_open_in_transformers_and_in_open_model(
    decoder: Path, tmp_path: Path, dtype: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("compressed_tensors")
    monkeypatch.setattr("tunesmith.pipelines.export.export.find_problems", lambda *given, **named: ())  # eight rows
    found = made(decoder, "compressed-tensors", tmp_path / "out", dtype)
    assert (found.format, found.same_prompts) == (f"compressed-tensors {dtype}", 1.0)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    rounded = {name for name, value in weights.items() if value.dtype == stored}
    assert len(rounded) == 14  # seven layers of each of two blocks
    others = {name for name in weights.keys() - rounded if not name.endswith("_scale")}
    assert {weights[name].dtype for name in others} == {torch.bfloat16}
    model = merged(decoder / "model", read_manifest(decoder / "model"), offline=True)
    step = {"int8": 1 / 254, "fp8": 1 / 16}[dtype]  # of rounding, relative to the largest or to the value itself
    for name in rounded:
        exact = model.policy.network.get_parameter(name)
        error = weights[name].float() * weights[f"{name}_scale"].float() - exact
        limit = exact.abs().amax(dim=1, keepdim=True) if dtype == "int8" else exact.abs() + 1e-3
        assert (error.abs() <= 1.05 * step * limit).all()
    asked = [Message("user", "the phone")]
    assert open_model(tmp_path / "out").replies([asked], sampling=Sampling(max_new_tokens=4))
    write = compress(model, dtype=dtype)
    for place in (tmp_path / "full", tmp_path / "elsewhere"):  # a full disk is tried again in another place
        place.mkdir()
        write(place)
        assert (place / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_eight_bits_that_lose_too_much_are_refused_with_the_format_that_loses_less(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("compressed_tensors")
    lost = ("exact_match changes by 0.100",)
    monkeypatch.setattr("tunesmith.pipelines.export.export.find_problems", lambda *given, **named: lost)
    with pytest.raises(Refused, match=r"changes by 0\.100; use --format merged --dtype bf16$"):
        made(decoder, "compressed-tensors", tmp_path / "out")
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_layers_that_compressed_tensors_would_leave_whole_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    rows, objective = (reviews(), "classify") if kind == "bert" else (answers(), "instruct")
    run = tune(recipe(tmp_path, rows, kind, objective=objective, schedule={"probe": False}), tmp_path / "run").folder
    reason = {"gpt2": "its layers are experts, transposed", "bert": "vLLM generates text, which an encoder cannot"}[
        kind
    ]
    with pytest.raises(RecipeError, match=reason):
        made(run, "compressed-tensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    if kind == "gpt2":
        with pytest.raises(
            ModelError, match=r"^compressed-tensors is not installed: pip install '?tunesmith\[compressed"
        ):
            made(run, "compressed-tensors", tmp_path / "out")


def smallest(run: Path, out: Path, margin: float) -> Export:
    return export(run, ExportRequest.smallest(margin), out=out, on_event=lambda event: None, offline=True)


@pytest.mark.long
def test_the_smallest_file_is_chosen_by_validation_rows_and_tested_on_test_rows(decoder: Path, tmp_path: Path):
    found = smallest(decoder, tmp_path / "out", margin=99)
    chosen = found.smallest
    assert chosen is not None
    assert not found.faults
    tested = [file for file in chosen.files if file.test is not None]
    assert [file.name for file in tested[-1:]] == ["f16"]
    assert len(tested) == 1 + TESTED
    assert chosen.chosen == tested[0].name  # nothing fails against such a margin
    assert all(file.tokens_per_second and file.not_worse for file in tested)
    assert tested[0].bytes == pytest.approx((tmp_path / "out/model.gguf").stat().st_size, rel=0.02)
    assert [layer.layer for layer in chosen.layers] == ["token_embd", "0", "1"]
    assert all(layer.divergence >= 0 and 0 < (layer.kept or 0) < 1 for layer in chosen.layers[1:])
    assert chosen.layers[0].kept is None  # an embedding has no importance
    assert chosen.rows == len(read_predictions(decoder))
    assert read_report(decoder).exports[-1] == found
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


@pytest.mark.long
@pytest.mark.parametrize("passing", [3, 2, 1])
def test_the_first_file_that_fails_ends_the_tests_and_the_last_that_passed_is_written(
    decoder: Path, tmp_path: Path, passing: int, monkeypatch: pytest.MonkeyPatch
):
    tests = []

    def scripted(reference: Any, candidate: Any, **settings: Any) -> MarginTest:
        p_value = 0.01 if len(tests) < passing else 0.06  # f16 is the first
        tests.append(MarginTest(0.0, (0.0, 0.0), 0.0, p_value, None if p_value < 0.05 else 400))
        return tests[-1]

    monkeypatch.setattr("tunesmith.pipelines.export.smallest.compare_to_margin", scripted)
    monkeypatch.setattr("tunesmith.pipelines.export.smallest.HeldOutRows.on_validation", lambda rows, model: 0.5)
    found = smallest(decoder, tmp_path / "out", margin=99).smallest
    assert found is not None
    files = {file.name: file for file in found.files}
    assert len(tests) == passing + 1 < 1 + TESTED + 1
    assert len([file for file in found.files if file.test]) == passing + 1  # the others stay untested
    largest_first = sorted((file for file in found.files if file.test), key=lambda file: -file.bytes)
    assert [file.not_worse for file in largest_first] == [True] * passing + [False]
    assert found.chosen == largest_first[passing - 1].name
    assert found.reason == f"{largest_first[passing].name} is not shown to lose less than the margin"
    with GgufWeights(tmp_path / "out/model.gguf") as written:
        assert written.bits({}) == pytest.approx(files[found.chosen].bits)


def test_a_file_is_asked_what_the_tuned_model_wprompts_of_with_its_system_message_turns_and_limit(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
):
    model = replace(load(decoder / "model", device="cpu", offline=True), wording="be brief")
    long = " ".join(["phone"] * 12)
    chats = [
        Chat("a:1", (Message("system", "be kind"), Message("user", "hi"), Message("assistant", "yes"), *turn))
        for turn in [(Message("user", text), Message("assistant", "no")) for text in ("the phone", long)]
    ]
    given = []
    generate = LocalModel._generate

    def spy(self: LocalModel, prompts: Any, sampling: Sampling) -> Any:
        given.extend((ids, self.longest(ids, sampling)) for ids in prompts)
        return generate(self, prompts, sampling)

    monkeypatch.setattr(LocalModel, "_generate", spy)
    answer(model, chats)
    assert [(row.ids, row.longest) for row in prompts_of(model, chats)] == given


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "adapter", "smallest": True}, "--smallest: writes a gguf file .*; omit --format adapter"),
        ({"dtype": "q2_k", "smallest": True}, "--smallest: writes a gguf file .*; omit --dtype q2_k"),
        ({"kind": "gguf", "margin": 2.0}, "--margin: only valid with --smallest; add it, or omit --margin"),
    ],
)
def test_options_that_smallest_would_ignore_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(RecipeError, match=problem):
        ExportRequest.of(**options)
    assert ExportRequest.of("gguf", smallest=True, margin=2.0) == ExportRequest.smallest(2.0)


@pytest.mark.long
def test_weights_that_cannot_be_rounded_in_torch_are_refused_and_noted(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parameters, experts, notes = GgufWeights.parameters, "blk.1.ffn_up.weight", []
    monkeypatch.setattr(
        GgufWeights, "parameters",
        lambda *given: {key: name for key, name in parameters(*given).items() if key != experts},
    )  # fmt: skip
    with pytest.raises(RecipeError, match=f"--smallest: {experts} and 0 more of 15 tensors are merged, .*--dtype"):
        smallest(decoder, tmp_path / "out", margin=99)
    assert not list(tmp_path.iterdir())
    room.write_file(
        merged(decoder / "model", read_manifest(decoder / "model"), offline=True), tmp_path,
        dtype="q4_k_m", name="x", on_note=notes.append,
    )  # fmt: skip
    assert notes == [f"no importance matrix for 1 tensors of 15, such as {experts}"]


@pytest.mark.long
def test_f16_is_written_with_the_rows_that_would_be_needed_where_nothing_is_shown(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failed = MarginTest(-0.1, (-0.3, 0.1), -0.3, 0.3, 400)
    monkeypatch.setattr("tunesmith.pipelines.export.smallest.compare_to_margin", lambda *given, **settings: failed)
    found = smallest(decoder, tmp_path / "out", margin=99)
    assert found.smallest is not None
    assert found.smallest.chosen == "f16"
    sentence = found.smallest.sentence()
    assert (
        "f16 is not shown to lose less than the margin; to show it for a file that loses nothing, use about 400"
        in sentence
    )
    assert found.smallest.layers == []
    assert not found.faults
    problems = "tunesmith.pipelines.export.export.find_problems"
    monkeypatch.setattr(problems, lambda found, form, allowed_change: (f"as {form}, {allowed_change}",))
    with pytest.raises(Refused, match=r"as gguf f16, 0.0; it was removed"):  # not excused by a test that it failed
        smallest(decoder, tmp_path / "other", margin=99)
    assert "model.gguf" in {path.name for path in (tmp_path / "out").iterdir()}


def test_another_process_that_writes_the_same_export_is_one_line(decoder: Path, tmp_path: Path):
    locked = pytest.raises(CheckpointError, match="out: locked by another process")
    with exclusive_lock(tmp_path / "out"), locked:  # a lock of the same process is one, too
        made(decoder, "merged", tmp_path / "out")
    assert made(decoder, "merged", tmp_path / "out").faults == ()


@pytest.mark.long
def test_a_margin_that_these_rows_cannot_show_is_refused_with_the_least_that_they_can(decoder: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"--margin 0.5: \d+ test rows cannot show it, .*; use --margin") as refused:
        smallest(decoder, tmp_path / "out", margin=0.5)
    assert not list(tmp_path.iterdir())
    possible = float(str(refused.value).split("use --margin ")[1].split()[0])
    found = smallest(decoder, tmp_path / "out", margin=possible).smallest
    assert found is not None
    exact = next(file for file in found.files if file.name == "f16")
    assert exact.not_worse  # its answers are equal
    grouped: Any = SimpleNamespace(test=["row"] * 60, groups=["a"] * 40 + ["b"] * 20, scale=1.0, margin=0.03)
    with pytest.raises(RecipeError, match=r"--margin 3: 60 test rows in 2 groups \(up to 40 rows\) cannot show it"):
        HeldOutRows.refuse_if_nothing_can_be_shown(grouped)


def test_what_cannot_be_tested_by_rows_is_refused_before_anything_is_written(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RecipeError, match=r"--margin 0: expected points of the metric above 0 and below 100; use 1"):
        ExportRequest.smallest(0)
    texts = tune(on_texts(tmp_path, "llama", schedule={"epochs": 1, "probe": False}), tmp_path / "run").folder
    with pytest.raises(RecipeError, match="--smallest: compares answers of one task that are scored row by row"):
        smallest(texts, tmp_path / "out", margin=1)
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    _kernels.cache_clear()
    with pytest.raises(ModelError, match="llama.cpp is not installed: pip install"):
        smallest(decoder, tmp_path / "out", margin=99)
    monkeypatch.undo()
    digests = read_report(decoder).data.sha256 | {"validation": "0"}
    monkeypatch.setattr(
        "tunesmith.pipelines.export.smallest.read_data", lambda recipe, offline: SimpleNamespace(sha256=digests)
    )
    with pytest.raises(
        CheckpointError, match=r"its validation rows have changed since; restore their file, or use --dtype"
    ):
        smallest(decoder, tmp_path / "out", margin=99)
    assert not (tmp_path / "out").exists()
