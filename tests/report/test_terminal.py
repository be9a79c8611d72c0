import io

from rich.console import Console

from tests.report.conftest import MakeRun, everything
from tunesmith.evaluation.diagnostics import tool_call_counts
from tunesmith.report.html import page
from tunesmith.report.model_card import card
from tunesmith.report.run_data import read_run_data
from tunesmith.report.schema import read_report
from tunesmith.report.terminal import render


def printed(run, *, width: int = 100, report=None) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for part in render(report or read_report(run), run):
        console.print(part)
    return console.file.getvalue()


def test_the_headline_comes_first_and_the_files_last(make_run: MakeRun):
    run = make_run(**everything())
    (run / "report.html").write_text("")
    text = printed(run)
    assert text.startswith("accuracy 0.600 → 0.800  (+0.200)\n")
    assert text.index("macro F1") < text.index("shuffled labels") < text.index("general ability")
    assert (
        "general ability: 2.900 → 3.000 nats per token (+0.100); general questions 50.0\xa0% → 45.0\xa0% correct"
        in text
    )
    files = text[text.index("\nin ") :]
    assert "report.html" in files
    assert "README.md" not in files


def test_who_is_not_beaten_is_marked(make_run: MakeRun):
    lines = printed(make_run()).splitlines()
    assert [line.split()[0] for line in lines if "not beaten" in line] == ["base", "oracle"]


def test_what_was_not_measured_is_said(make_run: MakeRun):
    assert "general ability: not measured" in printed(make_run())


def test_text_from_files_is_neither_markup_nor_a_command_to_the_terminal(make_run: MakeRun):
    run = make_run()
    report = read_report(run).model_copy(update={"verdict": "[bold]x[/nothing] \x1b]0;title\x07y"})
    assert "[bold]x[/nothing] ]0;titley" in printed(run, report=report)


def test_eighty_columns_are_enough(make_run: MakeRun):
    assert max(map(len, printed(make_run(**everything()), width=80).splitlines())) <= 80


def test_every_page_says_what_became_of_the_calls(make_run: MakeRun):
    call, other = (f'{{"name": "{name}", "arguments": {{}}}}' for name in "fg")
    counts = tool_call_counts(
        [call, call, "Hi.", "Hi."], base=["No.", '{"name": ', call, "Hi."], tuned=[call, other, "Hi.", "Hi."]
    )
    assert {name: pair for name, pair in counts.outcomes.items() if any(pair)} == {
        "exact": (1, 3),
        "unparsed": (1, 0),
        "missing": (1, 0),
        "not due": (1, 0),
        "name": (0, 1),
    }
    run = make_run(tool_calls=counts)
    says = "exact 0 → 1 of 2 rows with a due call; rightly none 1 → 2 of 2; not parsed 1 → 0; no call 1 → 0"
    counted = counts.sentence(4)
    assert counted == f"{says}; call not due 1 → 0; wrong function 0 → 1"
    data = read_run_data(run)
    for text in (printed(run, width=300), page(data), card(data)):
        assert says.split(" of ")[0] in text
    assert "Tool calls" not in page(read_run_data(make_run("without")))
