"""Scenarios: each provokes messages with real files and tiny models, and executes the commands that they print."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.printed_commands.collect import Printed
from tests.printed_commands.lab import EAGER, Lab, Result, Scenario
from tunesmith.pipelines.verify.make import challenge_of_run

SCENARIOS: dict[str, Scenario] = {}
COVERED: dict[Printed, str] = {}
CHAT = "cli/commands/chat.py"
LABEL = "cli/commands/label.py"
VOTES = "cli/commands/votes.py"
# Sentences that repeat what the user typed, and pieces of which another entry is the whole command.
ECHOES = {
    # The same sentence as that of the command line, which checks the path first.
    Printed("inference/serving/backends/gguf.py", "tunesmith export RUN --format gguf"),
    Printed("cli/commands/init.py", "tunesmith init: no input"),
    Printed("config/load.py", "--set {}: expected KEY=VALUE"),
    Printed("config/load.py", "--set {}: the value is invalid YAML"),
    Printed("config/commands.py", "--set {}"),
    Printed("pipelines/replay.py", "--set {}: replay repeats a run as it was"),
    Printed("pipelines/rebase.py", "--set {}.{}: the runs need the same rows and scores"),
}
# Prose on a page, with the command that it names.
PROSE = {
    Printed("config/unsupported.py", "tunesmith tune --processes N"): "tune --help",
    Printed("web/static/feedback.js", "tunesmith votes summary for the results"): "votes --help",
    Printed("web/static/label.js", "tunesmith label with --raters increased by one, or change a label"): "label --help",
    Printed("web/static/spans.js", "tunesmith label with --raters increased by one, or change a mark"): "label --help",
}


def covers(*printed: tuple[str, str]) -> Callable[[Scenario], Scenario]:
    """Register a scenario with the commands that it executes."""

    def register(scenario: Scenario) -> Scenario:
        SCENARIOS[scenario.__name__] = scenario
        COVERED.update({Printed(*one): scenario.__name__ for one in printed})
        return scenario

    return register


def reviews(count: int = 60) -> list[dict[str, object]]:
    """Labelled sentences."""
    words = {"positive": ("good", "great", "lovely"), "negative": ("bad", "awful", "broken")}
    kinds = ("positive", "negative")
    return [{"text": f"phone {i} is {words[kinds[i % 2]][i // 2 % 3]}", "label": kinds[i % 2]} for i in range(count)]


def answers(count: int = 40) -> list[dict[str, object]]:
    """Prompts with answers."""
    return [{"prompt": f"number {i}", "answer": f"it is {i % 3}"} for i in range(count)]


def tuned(lab: Lab, name: str, rows: list[dict[str, object]], *words: object) -> tuple[Path, str]:
    """Tune a tiny model; return the run folder and what was printed."""
    data = lab.rows(f"{name}.jsonl", rows)
    out = lab.folder / name
    text = lab.run("tune", data, *words, "--out", out, *EAGER)
    assert (out / "report.json").is_file(), text
    return out, text


def documents(lab: Lab, count: int = 2) -> Path:
    """A folder of long documents."""
    folder = lab.folder / "my manuals"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        lines = (f"Chapter {n} explains step {n * 7 % 31} of device {number}.\n\n" for n in range(40))
        (folder / f"manual {number}.txt").write_text("".join(lines))
    return folder


@covers(
    ("config/commands.py", "tunesmith audit"),
    ("pipelines/audit.py", "tunesmith tune"),
    ("pipelines/audit.py", "tunesmith tune {} {} --dry-run"),
    ("pipelines/audit.py", "--set objective.kind=rl"),
    ("training/read.py", "--set data.audit=note"),
    ("cli/commands/init.py", "tunesmith tune {} --dry-run"),
    ("data/schema/guess.py", "--set {}"),
    ("data/schema/ambiguous.py", "--set {}"),
    ("data/schema/formats.py", "tunesmith init"),
    ("config/resolve.py", "--set schedule.epochs=N"),
    ("config/resolve.py", "--set data.group= for no groups"),
)
def faulty_rows(lab: Lab) -> None:
    """From a file with faults and unknown columns to a dry run, by what is printed alone."""
    rows = [{"my remarks": f"a longer remark {i} of a user", "queue": "ab"[i % 2]} for i in range(40)]
    rows[3]["queue"] = 0.5  # type: ignore[assignment]
    data = lab.rows("odd rows.jsonl", rows)
    blocked = lab.run("init", data)
    after = lab.paste(blocked, "config/commands.py", "tunesmith audit {} --fix {}")
    lab.results[-1] = lab.results[-1]._replace(printed=Printed("config/commands.py", "tunesmith audit"))
    _paste_as(lab, after, Printed("pipelines/audit.py", "tunesmith tune"), "tunesmith tune {} --dry-run", lab.llama)
    fine = lab.rows("fine rows.jsonl", [row for row in rows if row["queue"] != 0.5])
    unknown = lab.run("tune", fine, "--model", lab.llama)
    lab.append(unknown, "data/schema/guess.py", "--set {}", ("tune", fine, "--model", lab.llama, "--dry-run"))
    assert "run `tunesmith init`" in unknown
    made = lab.run("init", fine, "--model", lab.llama)
    code = 0 if "written: recipe.yaml" in made else 2
    lab.results.append(
        _result("data/schema/formats.py", "tunesmith init", f"tunesmith init {fine} --model {lab.llama}", code)
    )
    lab.paste(made, "cli/commands/init.py", "tunesmith tune {} --dry-run")
    prompts = lab.rows("prompts.jsonl", [{"prompt": row["prompt"]} for row in answers()])
    lab.folder.joinpath("rules.py").write_text("def score(completion):\n    return 1.0\n")
    asked = ("tune", prompts, "--model", lab.llama, "--set", "objective.reward=rules.py:score", "--dry-run")
    audited = lab.run("audit", prompts, "--fix", "prompts-clean.jsonl")
    lab.append(audited, "pipelines/audit.py", "--set objective.kind=rl", asked)
    audited = lab.run("audit", "recipe.yaml", "--fix", "fine-clean.jsonl")
    lab.paste(audited, "pipelines/audit.py", "tunesmith tune {} {} --dry-run")

    questions = [
        {"question1": f"how to open {i}", "question2": f"what opens {i}", "same": "ab"[i % 2]} for i in range(40)
    ]
    data = lab.rows("questions.jsonl", questions)
    common = ("tune", data, "--model", lab.bert, "--dry-run")
    command = Printed("data/schema/ambiguous.py", "--set {}")
    _append_as(lab, lab.run(*common), command, "--set {}", common)

    secrets = reviews()
    for row in secrets:
        row["thread"] = f"thread {row['text']!s:.8}"
    secrets[5]["text"] = "the key is AKIAIOSFODNN7EXAMPLE"
    data = lab.rows("secrets.jsonl", secrets)
    stopped = lab.run("tune", data, "--model", lab.bert, "--dry-run")
    if "data.audit" not in stopped:
        stopped = lab.run("tune", data, "--model", lab.bert, "--out", "secrets", *EAGER)
    common = ("tune", data, "--model", lab.bert, "--dry-run")
    lab.append(stopped, "training/read.py", "--set data.audit=note", common)
    grouped = [{"text": f"text {i} is fine", "label": "ab"[i % 2], "thread": f"t{i // 2}"} for i in range(60)]
    data = lab.rows("grouped.jsonl", grouped)
    shown = lab.run("tune", data, "--model", lab.bert, "--dry-run")
    common = ("tune", data, "--model", lab.bert, "--dry-run")
    lab.append(shown, "config/resolve.py", "--set schedule.epochs=N", common, N=2)
    _append_as(lab, shown, Printed("config/resolve.py", "--set data.group= for no groups"), "--set data.group=", common)


def _result(file: str, command: str, pasted: str, code: int) -> Result:
    return Result(Printed(file, command), pasted, code, "")


def _paste_as(lab: Lab, output: str, printed: Printed, command: str, model: Path) -> str:
    """Execute a command that the source builds from parts; the base is a tiny model."""
    text = lab.paste(output.replace(" --dry-run", f" --model {model} --dry-run"), printed.file, command)
    lab.results[-1] = lab.results[-1]._replace(printed=printed)
    return text


def _append_as(lab: Lab, output: str, printed: Printed, setting: str, before: tuple[object, ...]) -> None:
    lab.append(output, printed.file, setting, before)
    lab.results[-1] = lab.results[-1]._replace(printed=printed)


FOLDER = Printed("data/readers/document_folder.py", "--set 'objective={kind: classify, text: text, label: folder}")


@covers(tuple(FOLDER))
def subfolders(lab: Lab) -> None:
    """From documents in subfolders to a classifier of the subfolders."""
    for name in ("bills", "letters"):
        (lab.folder / "mail" / name).mkdir(parents=True)
        for number in range(20):
            (lab.folder / "mail" / name / f"{number}.txt").write_text(f"{name} of number {number}", encoding="utf-8")
    common = ("tune", "mail", "--model", lab.bert, "--dry-run")
    _append_as(lab, lab.run(*common), FOLDER, "--set 'objective={}'", common)


@covers(
    ("data/audit/chunks.py", "tunesmith collect {} --as domain --out rows.jsonl"),
    ("data/readers/read.py", "tunesmith collect {} --as domain --out {}"),
    ("config/commands.py", "tunesmith collect {} --as domain --out {}"),
    ("data/splits/split.py", "tunesmith collect FOLDER --as domain --out FILE.jsonl"),
    ("cli/commands/collect.py", "tunesmith audit {}"),
)
def folders_of_documents(lab: Lab) -> None:
    """A folder where a file is expected, a document that is not rows, and documents too few to split."""
    folder = documents(lab)
    refused = lab.run("audit", folder)
    made = lab.paste(refused, "data/audit/chunks.py", "tunesmith collect {} --as domain --out rows.jsonl")
    lab.paste(made, "cli/commands/collect.py", "tunesmith audit {}")
    page = lab.folder / "a page.md"
    page.write_text("# Title\n\n" + "Some words about a device.\n\n" * 20)
    lab.paste(lab.run("init", page), "data/readers/read.py", "tunesmith collect {} --as domain --out {}")
    few = lab.run("init", folder)
    lab.paste(few, "config/commands.py", "tunesmith collect {} --as domain --out {}")
    left = lab.run("tune", documents(lab), "--model", lab.llama, "--dry-run")
    command = "tunesmith collect FOLDER --as domain --out FILE.jsonl"
    lab.paste(left, "data/splits/split.py", command, FOLDER=f"'{folder}'", FILE="passages")


@covers(
    ("config/load.py", "tunesmith init DATA"),
    ("config/load.py", "--set technique.rank=8"),
    ("config/unsupported.py", "tunesmith tune RECIPE --out FOLDER"),
    ("config/unsupported.py", "tunesmith tune RECIPE --force"),
    ("pipelines/audit.py", "tunesmith audit {}"),
    ("config/importers/llama_factory.py", "tunesmith init ROWS --from {}"),
    ("cli/commands/runs.py", "tunesmith tune RECIPE"),
)
def recipes(lab: Lab) -> None:
    """Recipes that are missing, empty or of another trainer."""
    rows = lab.rows("rows.jsonl", reviews())
    missing = lab.run("tune", "gone.yaml")
    lab.paste(missing, "config/load.py", "tunesmith init DATA", DATA=rows)
    common = ("tune", rows, "--model", lab.bert, "--dry-run")
    lab.append(
        lab.run(*common, "--set", "rank"), "config/load.py", "--set technique.rank=8",
        ("tune", rows, "--model", lab.llama, "--dry-run"),
    )  # fmt: skip
    recipe = lab.folder / "small.yaml"
    recipe.write_text(
        f"model: {lab.bert}\ndata: rows.jsonl\nobjective: classify\n"
        "schedule: {epochs: 1, probe: false, learning_rate: 0.01}\n"
    )
    none = lab.run("runs", lab.folder / "rows" if (lab.folder / "rows").is_dir() else lab.folder)
    lab.paste(none, "cli/commands/runs.py", "tunesmith tune RECIPE", RECIPE=f"{recipe} --out {lab.folder / 'small'}")
    for key, word in (("output_dir", "--out FOLDER"), ("overwrite_output_dir", "--force")):
        said = lab.run("tune", recipe, "--set", f"{key}=x", "--dry-run")
        command = f"tunesmith tune RECIPE {word}"
        lab.paste(said, "config/unsupported.py", command, RECIPE=recipe, FOLDER=lab.folder / "elsewhere")
    several = lab.folder / "several.yaml"
    several.write_text(
        f"model: {lab.bert}\nobjective:\n  kind: multitask\n  tasks:\n"
        "    one: {data: {train: rows.jsonl}, objective: classify}\n"
        "    two: {data: {train: rows.jsonl}, objective: classify}\n"
    )
    lab.paste(lab.run("audit", several), "pipelines/audit.py", "tunesmith audit {}")
    factory = lab.folder / "factory.yaml"
    factory.write_text(f"model_name_or_path: {lab.llama}\nstage: sft\ndataset: mine\nfinetuning_type: lora\n")
    chats = lab.rows("chats.jsonl", answers())
    command = "tunesmith init ROWS --from {}"
    lab.paste(
        lab.run("init", "--from", factory), "config/importers/llama_factory.py", command,
        ROWS=f"{chats} --out factory-recipe.yaml",
    )  # fmt: skip


@covers(
    ("cli/commands/tune.py", "tunesmith chat {}"),
    ("report/code_snippets.py", 'tunesmith ask {} "{}{}"{}'),
    ("report/model_card.py", "tunesmith tune RUN/recipe.yaml --out again"),
    ("cli/commands/export.py", "tunesmith serve {}/model.gguf"),
    ("inference/serving/backends/gguf.py", "tunesmith export {} --format gguf"),
    ("cli/commands/serve.py", "tunesmith export RUN --format gguf"),
    ("cli/commands/evaluate.py", "tunesmith evaluate {} {}"),
    ("cli/commands/runs.py", "tunesmith runs diff A B"),
    ("pipelines/verify/challenge.py", "tunesmith verify make {} --out {}"),
    ("pipelines/verify/make.py", "tunesmith verify make RUN --rows FILE"),
    (CHAT, "tunesmith tune {}"),
    (CHAT, "tunesmith votes export {} rows.jsonl"),
    (VOTES, "tunesmith tune {} --objective preference{}"),
    (VOTES, "tunesmith votes {} {} rows.jsonl"),
    ("inference/identify.py", "tunesmith tune ROWS --model {}"),
    ("inference/identify.py", "tunesmith serve {}"),
)
def a_decoder(lab: Lab) -> None:
    """A run of a decoder: asked, chatted with, exported, served, evaluated, and its ratings exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.pipelines.tune.tune.challenge_of_run", challenge_of_run)
        out, said = tuned(lab, "decoder", answers(), "--model", lab.llama, "--set", "objective.max_new_tokens=6")
    few = said  # prompts for a challenge: a tiny random model is certain of nothing
    lab.paste(said, "cli/commands/tune.py", "tunesmith chat {}")
    lab.paste(said, "report/code_snippets.py", 'tunesmith ask {} "{}"')
    lab.results[-1] = lab.results[-1]._replace(
        printed=Printed("report/code_snippets.py", 'tunesmith ask {} "{}{}"{}'),
    )
    card = (out / "README.md").read_text()
    command = "tunesmith tune RUN/recipe.yaml --out again"
    lab.paste(card, "report/model_card.py", command, RUN=out)
    assert lab.code(card.replace("PATH/TO/THE/BASE", str(lab.llama)), out) == 2
    none = lab.run("serve", out, "--engine", "llamacpp")
    exported = lab.paste(none, "inference/serving/backends/gguf.py", "tunesmith export {} --format gguf")
    lab.paste(exported, "cli/commands/export.py", "tunesmith serve {}/model.gguf")
    gone = lab.run("serve", lab.folder / "gone.gguf")
    lab.paste(gone, "cli/commands/serve.py", "tunesmith export RUN --format gguf", RUN=out)
    rows = lab.folder / "decoder.jsonl"
    lab.paste(lab.run("evaluate", out, rows, "--data", rows), "cli/commands/evaluate.py", "tunesmith evaluate {} {}")
    base = lab.run("ask", lab.llama, "hello")
    lab.paste(base, "inference/identify.py", "tunesmith tune ROWS --model {}", ROWS=f"{rows} --dry-run")
    lab.paste(base, "inference/identify.py", "tunesmith serve {}")
    diff = lab.run("runs", "diff", out)
    lab.paste(diff, "cli/commands/runs.py", "tunesmith runs diff A B", A=out, B=lab.folder / "again")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST_LEAD", 0.0), ("NEEDED", 0)):
            patch.setattr(f"tunesmith.pipelines.verify.make.{name}", value)
        none = lab.run("verify", out)
        lab.paste(none, "pipelines/verify/challenge.py", "tunesmith verify make {} --out {}")
        command = "tunesmith verify make RUN --rows FILE"
        lab.paste(few, "pipelines/verify/make.py", command, RUN=out, FILE=f"{rows} --out longer.json")
    _ratings(lab, out)


@covers(("pipelines/tune/golden.py", "tunesmith tune {} --out {}"))
def upgrades(lab: Lab) -> None:
    """A run without a recording is tuned again and replayed, and a new base is tuned on its rows."""
    out, _ = tuned(lab, "old run", reviews(), "--model", lab.bert, "--technique", "full")
    (out / "golden.json").unlink()
    lab.paste(lab.run("replay", out), "pipelines/tune/golden.py", "tunesmith tune {} --out {}")
    assert "same: " in lab.run("replay", f"{out}-again")
    assert "set only machine.device" in lab.run("replay", out, "--set", "seed=1")
    assert "leave it as it was" in lab.run("rebase", out, "--model", lab.llama, "--set", "objective.metric=macro_f1")
    assert "rebase.html" in lab.run("rebase", out, "--model", lab.llama, "--out", lab.folder / "rebased")


def _ratings(lab: Lab, out: Path) -> None:
    """Save and rate a conversation in `chat`, and use the files that it names."""
    typed = "hello\n/good\n/save my chat.jsonl\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(typed))
        said = lab.run("chat", out)
    # A random model writes broken characters, and one conversation is too few: the files get sound rows of their form.
    chat = Path("my chat.jsonl")
    (turns,) = json.loads(chat.read_text()).values()
    talks = [[{**turn, "content": f"{turn['role']} says {i}"} for turn in turns] for i in range(40)]
    lab.rows(chat.name, [{"messages": talk} for talk in talks])
    text = re.sub(r"(tunesmith tune '[^']*')", rf"\1 --model {lab.llama} --dry-run", said)
    lab.paste(text, CHAT, "tunesmith tune {}")
    exported = lab.paste(said, CHAT, "tunesmith votes export {} rows.jsonl")
    row = json.loads(Path("rows.jsonl").read_text())
    sound = [{"prompt": f"hello {i}", "completion": f"answer {i}", "label": i % 2 == 0} for i in range(40)]
    lab.rows("rows.jsonl", [{**{key: row[key] for key in row if key not in one}, **one} for one in sound])
    command = "tunesmith tune {} --objective preference"
    shown = re.sub(r"(--objective preference.*)", rf"\1 --model {lab.llama} --dry-run", exported)
    lab.paste(shown, VOTES, command)
    lab.results[-1] = lab.results[-1]._replace(printed=Printed(VOTES, command + "{}"))
    store = re.search(r"votes export (\S+)", said)
    assert store
    usage = lab.run("votes", "export", store[1])
    lab.paste(usage, VOTES, "tunesmith votes {} {} rows.jsonl")


@covers(
    ("report/model_card.py", "tunesmith export . --format merged"),
    (CHAT, "tunesmith ask {} TEXT"),
    ("cli/commands/compare.py", "tunesmith ask {}"),
    ("inference/open_model.py", "tunesmith tune ROWS --model {}"),
    ("pipelines/evaluate.py", "--set objective.label=COLUMN"),
)
def an_encoder(lab: Lab) -> None:
    """A run of an encoder: chat is refused, another label column is named, a comparison is asked."""
    out, _ = tuned(lab, "encoder", reviews(), "--model", lab.bert, "--technique", "full")
    with contextlib.chdir(out):
        card = (out / "README.md").read_text()
        lab.paste(card, "report/model_card.py", "tunesmith export . --format merged")
    lab.paste(lab.run("chat", out), CHAT, "tunesmith ask {} TEXT")
    assert lab.code((out / "README.md").read_text(), out) >= 1
    other = [{"text": row["text"], "label": f"no {i % 3}", "mood": row["label"]} for i, row in enumerate(reviews())]
    data = lab.rows("other.jsonl", other)
    wrong = lab.run("evaluate", out, data)
    lab.append(wrong, "pipelines/evaluate.py", "--set objective.label=COLUMN", ("evaluate", out, data), COLUMN="mood")
    ask = lab.run("evaluate", lab.bert, lab.folder / "encoder.jsonl")
    if "--model" in ask:
        rows = f"{lab.folder / 'encoder.jsonl'} --dry-run"
        lab.paste(ask, "inference/open_model.py", "tunesmith tune ROWS --model {}", ROWS=rows)
    arms = ("--set", "arms=[prompt, tf-idf]", "--set", "data.audit=note")
    data = lab.folder / "encoder.jsonl"
    compared = lab.run("compare", data, "--model", lab.llama, *arms, "--out", lab.folder / "a comparison")
    lab.paste(compared, "cli/commands/compare.py", "tunesmith ask {}")


@covers(
    ("report/code_snippets.py", "tunesmith evaluate {} --data PAIRS{}"),
    ("inference/local_model.py", "tunesmith evaluate RUN --data PAIRS"),
)
def a_reward_model(lab: Lab) -> None:
    """A reward model scores pairs; it cannot generate."""
    rows = [{"prompt": f"number {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    out, said = tuned(lab, "reward", rows, "--model", lab.llama, "--objective", "reward")
    pairs = lab.folder / "reward.jsonl"
    lab.paste(said, "report/code_snippets.py", "tunesmith evaluate {} --data PAIRS", PAIRS=pairs)
    lab.results[-1] = lab.results[-1]._replace(
        printed=Printed("report/code_snippets.py", "tunesmith evaluate {} --data PAIRS{}")
    )
    assert lab.code((out / "README.md").read_text(), out) >= 1
    refused = lab.run("ask", out, "hello")
    lab.paste(refused, "inference/local_model.py", "tunesmith evaluate RUN --data PAIRS", RUN=out, PAIRS=pairs)


@covers(
    (LABEL, "tunesmith label {} --export {}"),
    (LABEL, "tunesmith tune {} --dry-run"),
    ("pipelines/label.py", "tunesmith label {}"),
    ("cli/commands/feedback.py", "tunesmith votes summary {}"),
)
def pages(lab: Lab) -> None:
    """The pages for raters: opened, closed, exported."""
    rows = lab.rows("to label.jsonl", [{"text": row["text"]} for row in reviews()])
    empty = lab.run("label", rows, "--export", "out.jsonl")
    lab.paste(empty, "pipelines/label.py", "tunesmith label {}")
    rows = lab.rows("partly labelled.jsonl", reviews())
    closed = lab.run("label", rows, "--port", 0)
    exported = lab.paste(closed, LABEL, "tunesmith label {} --export {}")
    text = exported.replace(" --dry-run", f" --model {lab.bert} --dry-run")
    lab.paste(text, LABEL, "tunesmith tune {} --dry-run")
    prompts = lab.rows("prompts.jsonl", [{"prompt": f"number {i}"} for i in range(4)])
    store = lab.folder / "my votes.db"
    judged = ("--prompts", prompts, "--store", store, "--max-tokens", 4, "--thumbs")
    closed = lab.run("feedback", lab.llama, *judged, "--port", 0)
    lab.paste(closed, "cli/commands/feedback.py", "tunesmith votes summary {}")
