"""The Python functions: one per command with the same parameters, examples that run, and results that fit a screen."""

from __future__ import annotations

import argparse
import ast
import doctest
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import tunesmith as ts
from tests.glance import only_a_glance
from tests.served import save_run
from tests.tiny import tiny_encoder
from tunesmith.api import Listing, as_parameters
from tunesmith.cli.main import parser
from tunesmith.display import Display, Displayed
from tunesmith.events import Note, StepFinished
from tunesmith.inference.serving import registry
from tunesmith.notebook import NotebookProgress
from tunesmith.techniques import Lora

# Command -> its functions, and for each the options that another function of the command has.
FUNCTIONS: dict[str, dict[str, set[str]]] = {
    "demo": {"demo": set()},
    "init": {"init": set()},
    "collect": {"collect": set()},
    "audit": {"audit": set()},
    "label": {
        "label": {"export", "format"},
        "export_labels": {
            "labels",
            "show",
            "import_",
            "features",
            "seed",
            "overlap",
            "raters",
            "host",
            "port",
        },
    },
    "compare": {"compare": set()},
    "learning-curve": {"learning_curve": set()},
    # Files for clusters start the command line.
    "plan": {"plan": {"render", "image", "store"}},
    # A script with several processes is started by torchrun.
    "tune": {
        "tune": {"dry_run", "processes"},
        "preview": {"dry_run", "force", "on", "out", "processes", "verdict_minutes"},
    },
    "replay": {"replay": set()},
    "rebase": {"rebase": set()},
    "evaluate": {"evaluate": {"file"}},  # in Python, `data` may be positional
    "ask": {"ask": set()},
    "export": {"export": set()},
    "push": {"push": set()},
    "verify": {
        "verify": {"base", "rows", "chat"},
        "verify_chat": {"base", "rows", "chat"},
        "make_challenge": {"at", "chat"},
    },
    "serve": {"serve": set()},
    "feedback": {"feedback": set()},
    "votes": {
        "votes_summary": {"act", "file", "format", "rater"},
        "votes_export": {"act", "rater"},
        "votes_import": {"act", "format", "without"},
    },
    "rlhf": {"rlhf": {"dry_run"}, "plan_rlhf": {"dry_run"}},
    "runs": {"runs": {"task"}, "diff_runs": set()},
    "models": {"list_models": {"words"}, "check_model": {"fetch"}},
    "doctor": {"doctor": set()},
}
# A conversation needs a terminal, and the studio is a page of commands; in Python, `load(run).reply(messages)` answers.
WITHOUT_FUNCTION = {"chat", "mcp", "need", "studio"}
# Keys of the recipe, which the command line sets with `--set`.
RECIPE_KEYS = {"data", "schedule", "gates", "replay", "seed", "documents", "arms", "loop"}
PYTHON_ONLY = {"progress", "callback", "callbacks", "more"}
# Positional arguments that have one name on the command line and several parameters in Python.
RENAMED = {"runs": {"words": {"folder"}}, "diff_runs": {"words": {"a", "b"}}, "check_model": {"words": {"model"}}}
RENAMED |= {
    "verify": {"words": {"run"}},
    "verify_chat": {"words": {"run"}},
    "make_challenge": {"words": {"model", "out"}},
}


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def options(command: str) -> dict[str, Any]:
    """Map the parameter name of each option to its default; --json, --schema and the copy of --json are left out."""
    found = {}
    for action in commands()[command]._actions:
        if action.help == argparse.SUPPRESS or action.dest in ("help", "json", "schema"):
            continue
        long = [name for name in action.option_strings if name.startswith("--")]
        name = long[0].removeprefix("--").replace("-", "_") if long else action.dest
        if name == "out" and action.help and "also write the JSON" in action.help:
            continue
        found[{"set": "settings", "from": "from_", "as": "as_", "import": "import_"}.get(name, name)] = action.default
    return found


def plain(value: object) -> object:
    """Return a default in a form that is equal for the command line and Python."""
    value = str(value) if isinstance(value, Path) else value
    return None if isinstance(value, str | list | tuple) and not value else value


def test_every_command_has_a_function():
    assert set(commands()) == set(FUNCTIONS) | WITHOUT_FUNCTION
    assert {name for names in FUNCTIONS.values() for name in names} | {"load"} == {
        name for name in ts.__all__ if inspect.isfunction(getattr(ts, name))
    }


@pytest.mark.parametrize(("command", "name"), [(c, name) for c, names in FUNCTIONS.items() for name in names])
def test_a_function_has_the_parameters_and_defaults_of_its_command(command: str, name: str):
    parameters = inspect.signature(getattr(ts, name)).parameters
    expected = {key: value for key, value in options(command).items() if key not in FUNCTIONS[command][name]}
    for old, new in RENAMED.get(name, {}).items():
        expected.pop(old)
        expected |= dict.fromkeys(new)
    missing = expected.keys() - parameters.keys() - {"offline"}  # some commands only accept it
    extra = parameters.keys() - expected.keys() - PYTHON_ONLY - (RECIPE_KEYS if "settings" in parameters else set())
    assert (missing, extra) == (set(), set())
    for key in (expected.keys() & parameters.keys()) - {"folder", "offline"}:
        default = parameters[key].default
        if default is not inspect.Parameter.empty:
            assert plain(default) == plain(expected[key]), key


@pytest.mark.parametrize("name", sorted(name for name in ts.__all__ if inspect.isfunction(getattr(ts, name))))
def test_the_help_of_a_function_documents_every_parameter(name: str):
    function = getattr(ts, name)
    text = inspect.getdoc(function) or ""
    for parameter, value in inspect.signature(function).parameters.items():
        stars = "**" if value.kind is inspect.Parameter.VAR_KEYWORD else ""
        assert f"    {stars}{parameter}: " in text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the examples name; `minilm-l6` is a tiny random model in it."""
    from tunesmith.models.loading import bundled_models

    assert "minilm-l6" in bundled_models.BUNDLED_MODELS
    monkeypatch.chdir(tmp_path)
    tiny_encoder(tmp_path / "minilm-l6")
    rows = [{"text": f"phone {i} is {('good', 'bad')[i % 2]}", "label": ("good", "bad")[i % 2]} for i in range(60)]
    rows.append(rows[0])
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "manual.md").write_text("# Pump\n\nOpen the valve first.\n\n# Filter\n\nClean it every week.\n")
    only_a_glance(monkeypatch)
    return tmp_path


@pytest.mark.parametrize("name", ["init", "tune", "audit", "collect", "list_models"])
def test_the_example_in_the_help_runs(place: Path, name: str):
    text = (inspect.getdoc(getattr(ts, name)) or "").replace('model="minilm-l6"', 'model="./minilm-l6"')
    text = text.replace('{"epochs": 1}', '{"epochs": 1, "probe": False}')  # a random model learns too slowly for it
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert outcome.failed == 0


@pytest.mark.parametrize("name", sorted(name for name in ts.__all__ if inspect.isfunction(getattr(ts, name))))
def test_examples_that_need_minutes_at_least_call_the_function_with_parameters_it_has(name: str):
    function = getattr(ts, name)
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(function) or ""):
        for node in ast.walk(ast.parse(example.source)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func)
            if called and called.count(".") == 1 and called.startswith("tunesmith."):
                arguments = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                inspect.signature(getattr(ts, called.partition(".")[2])).bind(*node.args, **arguments)


def test_a_run_prints_a_few_lines_and_is_escaped_in_a_notebook(place: Path):
    run = ts.tune(
        "reviews.jsonl",
        model="./minilm-l6",
        technique="full",
        out="run<b>",
        settings={"machine.threads": 1, "schedule.probe": False},
        progress=False,
        offline=True,
    )
    assert repr(run).startswith("Run(run<b>): ")
    assert len(repr(run).splitlines()) <= 5
    assert len(repr(run.report).splitlines()) <= 5
    page = run._repr_html_()
    assert "<b>Run(run&lt;b&gt;)" in page
    assert "<th>tuned</th>" in page
    assert "run<b>" not in page
    model = ts.load(run.folder, offline=True)
    assert repr(model) == "LocalModel(minilm-l6 + full, classify: 2 labels, run<b>)"
    one, many = model.classify("phone 3 is bad"), model.classify(["phone 3 is bad"])
    assert [one.label] == [result.label for result in many]
    assert repr(one).startswith(("Classified('good', 0.", "Classified('bad', 0."))
    assert model.embed("phone 3 is bad").shape == model.embed(["phone 3 is bad"])[0].shape
    assert ts.ask(run.folder, "phone 3 is bad", offline=True) == one
    score = ts.evaluate(run.folder, "reviews.jsonl", rows=20, progress=False, offline=True)
    assert score.n == 20
    listed = ts.runs(".")
    assert [entry["run"].name for entry in listed] == ["run<b>"]
    assert "run&lt;b&gt;" in listed._repr_html_()


def test_a_run_names_its_base_without_the_home_folder_and_resumes_and_answers(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    home, base = place / "homes" / "ada", place / "homes" / "ada" / "models" / "bert"
    base.parent.mkdir(parents=True)
    (place / "minilm-l6").rename(base)
    monkeypatch.setenv("HOME", str(home))
    out = home / "runs" / "a"
    fixed: dict[str, Any] = {
        "out": out,
        "settings": {"machine.threads": 1, "schedule.probe": False},
        "progress": False,
        "offline": True,
    }
    run = ts.tune("reviews.jsonl", model=str(base), technique="full", **fixed)
    for name in ("recipe.yaml", "report.json", "report.html", "README.md", "model/tunesmith.json", "journal.jsonl"):
        assert str(home) not in (out / name).read_text()
    assert json.loads((out / "model" / "tunesmith.json").read_text())["base"] == "~/models/bert"
    assert ts.preview(out / "recipe.yaml", offline=True).recipe.model == "~/models/bert"
    assert ts.tune("reviews.jsonl", model=str(base), technique="full", **fixed).reused
    answer = ts.load(run.folder, offline=True).classify("phone 1 is bad").label
    monkeypatch.setenv("HOME", str(place))  # another user reads the run
    assert ts.load(run.folder, offline=True).classify("phone 1 is bad").label == answer


def test_progress_is_shown_by_default_and_not_without(place: Path, capsys: pytest.CaptureFixture[str]):
    settings: dict[str, Any] = {
        "model": "./minilm-l6",
        "technique": "full",
        "settings": {"machine.threads": 1, "schedule.probe": False},
        "offline": True,
    }
    ts.tune("reviews.jsonl", out="quiet", progress=False, **settings)
    assert capsys.readouterr() == ("", "")
    ts.tune("reviews.jsonl", out="shown", **settings)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training" in shown.err


def test_settings_may_be_dotted_nested_or_keyword_arguments(place: Path):
    for more in ({"settings": {"schedule.epochs": 3}}, {"schedule": {"epochs": 3}}, {"num_train_epochs": 3}):
        shown = ts.preview("reviews.jsonl", model="./minilm-l6", offline=True, **more)
        assert shown.recipe.schedule.epochs == 3
        assert repr(shown).startswith("Preview: ")


def test_an_error_names_the_parameter_instead_of_the_option(place: Path):
    with pytest.raises(ts.TunesmithError, match=r"^rows: expected an integer >= 0, got -1; use 0 for all rows$"):
        ts.evaluate("run", "reviews.jsonl", rows=-1)
    with pytest.raises(ts.TunesmithError, match=r"^per_passage: expected 1 to 5, got 9"):
        ts.collect("manual.md", per_passage=9)
    assert as_parameters("x: use another --out, or `tunesmith tune --force`") == (
        "x: use another out=, or `tunesmith tune --force`"
    )


def test_a_plan_for_gpus_that_are_not_here_shows_on_how_many_it_fits(place: Path):
    plan = ts.plan("reviews.jsonl", model="./minilm-l6", technique="full", gpu="h100", gpus=8, progress=False)
    first, *rest = repr(plan).splitlines()
    assert first.endswith("full: fits on 8 GPUs")
    assert any("h100" in line for line in rest)


def test_rows_in_memory_are_refused_with_how_to_write_them_to_a_file():
    rows = [{"text": "a", "label": "x"}]
    for table in (rows, datasets.Dataset.from_list(rows)):
        for function in (ts.tune, ts.audit, ts.init, lambda data: ts.plan(data=data)):
            with pytest.raises(ts.TunesmithError, match="rows are read from files, .* by to_json"):
                function(table)


def test_wrong_rows_are_reported_before_torch_is_imported(place: Path):
    code = (
        "import sys, tunesmith\n"
        "for function in (tunesmith.tune, tunesmith.plan):\n"
        "    try: function('missing.jsonl', model='minilm-l6', offline=True, progress=False)\n"
        "    except tunesmith.TunesmithError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *errors, torch_imported = done.stdout.splitlines()
    assert len(errors) == 2
    assert all(error.startswith("missing.jsonl: no such file") for error in errors)
    assert torch_imported == "False"


def test_an_earlier_run_is_only_deleted_for_rows_that_can_be_used(place: Path):
    earlier = Path("earlier")
    earlier.mkdir()
    (earlier / "run.json").write_text("{}")
    Path("wrong.jsonl").write_text('{"text": "a text", "label": "good"}\n' * 20)  # one label
    recipe = {"model": "./minilm-l6", "objective": {"kind": "classify", "text": "text", "label": "label"}}
    with pytest.raises(ts.TunesmithError, match="wrong.jsonl"):
        ts.tune("wrong.jsonl", out=earlier, force=True, offline=True, progress=False, **recipe)
    assert (earlier / "run.json").exists()


def test_labels_given_as_a_list_may_contain_commas():
    from tunesmith.pipelines.requests import listed

    assert listed(["yes, surely", "no"]) == ("yes, surely", "no")
    assert listed("yes, no") == ("yes", "no")


def test_a_labelling_page_answers_in_the_background_until_it_is_closed(place: Path):
    import urllib.request

    with ts.label("reviews.jsonl", labels=["good", "bad"], port=0, progress=False) as page:
        assert repr(page) == f"Served(labels of reviews.jsonl): {page.url}"
        with urllib.request.urlopen(page.url, timeout=20) as answer:
            assert answer.status == 200
    assert repr(page) == "Served(labels of reviews.jsonl): closed"
    page.close()


def test_a_notebook_shows_lines_and_a_bar_in_one_output():
    shown: list[str] = []
    now = iter([0.0, 0.1, 0.2, 9.0, 9.1])
    progress = NotebookProgress(shown.append, clock=lambda: next(now))
    progress(Note("reading <rows>"))
    for step in (1, 2, 3):
        progress(StepFinished(step, 9, 0.5, 1e-3, 1.0, 8, 0.1, 80.0))
    assert len(shown) == 2
    assert "reading &lt;rows&gt;" in shown[-1]
    assert '<progress value="3" max="9">' in shown[-1]


def test_a_result_with_hostile_text_is_one_line_per_fact():
    class Result(Displayed):
        def display(self) -> Display:
            return Display("a\x1b[31m\nb", ["<script>\ud800"], ("x",), [("<i>",)])

    assert repr(Result()) == "a [31m b\n  <script>?"
    assert "&lt;i&gt;" in Result()._repr_html_()
    assert "<script>" not in Result()._repr_html_()
    assert repr(Listing("Things", [{"a": 1}], ["a"])) == "Things: 1\n  1"


def test_importing_tunesmith_takes_less_than_a_fifth_of_a_second():
    code = "import time; t = time.process_time(); import tunesmith; print(time.process_time() - t)"
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(each.stdout) for each in done) < 0.2


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny decoder that writes."""
    return save_run(tmp_path_factory.mktemp("writer") / "replies", Lora(rank=2))


def test_a_server_answers_in_the_background_until_it_is_closed(writer: Path, tmp_path: Path):
    import urllib.request

    store = tmp_path / "thumbs.db"
    with ts.serve(writer, port=0, offline=True, store=store) as served:
        with urllib.request.urlopen(f"{served.url}v1/models", timeout=30) as answer:
            models = json.load(answer)
        assert [model["id"] for model in models["data"]] == ["replies", "llama"]
        assert served.url in served._repr_html_()
    assert repr(served) == "Served(replies): closed"


def test_a_dtype_is_that_of_a_loaded_run_and_of_a_served_one(writer: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    read = registry.read_base

    def noting(*given: Any, dtype: str, **more: Any) -> Any:
        asked.append(dtype)
        return read(*given, dtype=dtype, **more)

    monkeypatch.setattr(registry, "read_base", noting)
    with ts.serve(writer, port=0, offline=True, dtype="bfloat16"):
        assert asked == ["bfloat16"]
    assert ts.load(writer, dtype="bfloat16", offline=True).policy.network.dtype == torch.bfloat16
    with pytest.raises(ts.TunesmithError, match="dtype: 'float8' is not one of float32, bfloat16; use one of them"):
        ts.load(writer, dtype="float8", offline=True)  # type: ignore[arg-type]


def test_a_feedback_page_counts_votes_and_writes_them_as_rows(writer: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(4)))
    store = tmp_path / "votes.db"
    with ts.feedback(
        writer, prompts=prompts, max_new_tokens=4, store=store, port=0, offline=True, progress=False
    ) as page:
        assert page.url.startswith("http://127.0.0.1:")
    summary = ts.votes_summary(store)
    assert (summary.items > 0, summary.judged) == (True, 0)
    assert repr(summary) == f"Votes({store}): 0 of {summary.items} prompts judged"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "what is 1?", "chosen": "one", "rejected": "two"}) + "\n")
    assert ts.votes_import(tmp_path / "own.db", pairs, rater="ann").votes == 1
    done = ts.votes_export(tmp_path / "own.db", tmp_path / "rows.jsonl")
    assert (done.rows, done.format) == (1, "pairs")
    with pytest.raises(ts.TunesmithError, match=r"expected a file name ending in .jsonl"):
        ts.votes_export(tmp_path / "own.db", tmp_path / "rows.csv")


def test_a_generating_model_returns_one_answer_for_one_prompt(writer: Path):
    model = ts.load(writer, offline=True)
    assert repr(model).startswith("LocalModel(llama")
    assert repr(model).endswith(f"+ lora, instruct, {writer})")
    short = ts.Sampling(max_new_tokens=4)
    assert model.generate("hello", sampling=short) == model.generate(["hello"], sampling=short)[0]
    asked = ts.ask(writer, "hello", max_new_tokens=4, offline=True)
    assert str(asked) == model.generate("hello", sampling=short)


def test_plans_and_comparisons_fit_a_few_lines(place: Path):
    small: dict[str, Any] = {"model": "./minilm-l6", "progress": False, "offline": True}
    threads = {"machine.threads": 1, "machine.dtype": "float32", "schedule.probe": False}
    made = ts.plan("reviews.jsonl", quick=True, settings=threads, **small)
    assert repr(made).startswith("Plan(./minilm-l6, classify on ")
    assert len(repr(made).splitlines()) <= 5
    assert "peak memory" in made._repr_html_()
    compared = ts.compare("reviews.jsonl", arms=["tuned", "tf-idf"], settings=threads, out="compared", **small)
    assert repr(compared).startswith("Comparison(compared): ")
    assert "tf-idf" in compared._repr_html_()
    assert (place / "compared" / "report.html").is_file()
    assert ts.ask("compared", "phone 3 is bad", offline=True).arm == "tf-idf"
    with pytest.raises(
        ts.TunesmithError, match=r"omit temperature=, top_p=, max_new_tokens=, seed=, task= and thinking="
    ):
        ts.ask("compared", "phone 3 is bad", temperature=0.5)
