import io

from rich.console import Console

from tests.report.conftest import MakeRun, everything
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
