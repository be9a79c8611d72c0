import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from tests.report.conftest import EVIL, MakeRun, everything, task_of, with_objective
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.results import Retention
from tunesmith.objectives import Classify, Instruct
from tunesmith.report.html import _general_ability, page, write_reports
from tunesmith.report.run_data import read_run_data
from tunesmith.report.verdicts import name_of_test

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """The elements of a page, and whether each is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if self.open[-2:-1] == ["p"] and tag in {"p", "div", "details", "ul", "table", "dl"}:
            self.faults.append(f"{tag} inside p")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    found.close()
    return found


def full_page(make_run: MakeRun) -> str:
    return page(read_run_data(make_run(**everything())))


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


def test_the_page_loads_nothing(make_run: MakeRun):
    html = full_page(make_run)
    found = outline(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.seen)
    for name, value in found.attributes:
        if name in ("src", "href", "srcset", "xlink:href", "action"):
            assert value is not None
            assert value.startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_every_element_is_closed_in_order_and_every_id_is_there_once(make_run: MakeRun):
    found = outline(full_page(make_run))
    assert found.faults == []
    assert found.open == []
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_link_inside_the_page_leads_somewhere(make_run: MakeRun):
    attributes = outline(full_page(make_run)).attributes
    ids = {value for name, value in attributes if name == "id"}
    assert {value[1:] for name, value in attributes if name == "href" and value} <= ids


def test_a_script_in_a_row_is_shown_as_text(make_run: MakeRun):
    html = full_page(make_run)
    assert EVIL not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "<b>cut</b>" not in html
    assert "<i>history</i>" not in html


def test_the_name_of_the_run_is_escaped_too(make_run: MakeRun):
    html = page(read_run_data(make_run(model='x"><img src=x onerror=1>')))
    assert "img" not in outline(html).seen


def test_the_verdict_and_the_headline_stand_on_the_page(make_run: MakeRun):
    facts = read_run_data(make_run())
    html = unescape(page(facts))
    assert facts.report.task.sentence in html
    assert "inconclusive: tuned 0.8, base 0.6, difference +0.2" in html
    # McNemar: three rows one way, one the other: 2 * (1 + 4) / 16.
    assert "p = 0.625" in html
    assert "+0.200" in html


def test_the_sections_come_in_the_order_of_a_readers_questions(make_run: MakeRun):
    told = ["retention", "against", "curves", "labels", "examples", "calibration", "style", "data"]
    assert sections(full_page(make_run)) == [*told, "cost", "environment", "again"]


def test_what_was_not_measured_is_said_and_leaves_no_empty_section(make_run: MakeRun):
    html = page(read_run_data(make_run()))
    assert "style" not in sections(html)
    assert "Not measured in this run" in html


@pytest.mark.parametrize(("p_value", "worse"), [(0.002, True), (0.2, False), (None, False)])
def test_fewer_probe_questions_right_are_called_worse_only_where_a_test_says_so(p_value: float | None, worse: bool):
    retention = Retention(
        general_nll_base=2.9, general_nll_tuned=2.9, probe_base=0.5, probe_tuned=0.45, probe_n=400, p_value=p_value
    )
    assert [line["worse"] for line in _general_ability(retention)] == [False, worse]


def test_a_baseline_that_the_tuned_model_does_not_beat_is_named(make_run: MakeRun):
    html = page(read_run_data(make_run()))
    assert "Oracle scores higher: 1.000 against 0.800, adjusted p = 1.000." in html
    assert "Not significantly better than base: 0.800 against 0.600, p = 0.625." in html


def test_a_long_text_is_folded_and_complete(make_run: MakeRun):
    question = "word " * 200 + "end"
    html = page(read_run_data(make_run(rows=[(question, "good", "bad", "good"), ("b", "bad", "bad", "bad")])))
    assert "all 1,003 characters" in html
    folded = re.search(r"<summary>(.*?)… <span.*?</summary>…(.*?)</details>", html)
    assert folded is not None
    assert folded[1] + folded[2] == question


def test_plots_take_the_pages_colours_and_say_in_words_what_they_show(make_run: MakeRun):
    html = full_page(make_run)
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        assert 'role="img" aria-label="' in picture
        assert "var(--tuned)" in picture
        assert not re.search(r"#[0-9a-f]{6}\b", picture)
    assert "Training loss from 1 to 0.25 over 4 steps; lowest validation loss 0.5 at step 2" in html


def test_a_run_without_journal_and_predictions_has_a_page(make_run: MakeRun):
    run = make_run()
    (run / "journal.jsonl").unlink()
    (run / "predictions.jsonl").unlink()
    html = page(read_run_data(run))
    assert "<svg" not in html
    assert sections(html) == ["retention", "against", "curves", "data", "cost", "environment", "again"]


def test_answers_in_free_text_are_shown_by_how_much_they_changed(make_run: MakeRun):
    rows = [("up", "a b", "x", "a b"), ("down", "a b c", "a b c", "a b x")]
    run = make_run(rows=rows, task=task_of("rouge_l", 0.5, 0.8), objective="instruct")
    with_objective(run, Instruct())
    html = page(read_run_data(run))
    assert "Most improved" in html
    assert "labels" not in sections(html)
    assert "✓ right" not in html
    assert outline(html).faults == []


def test_answers_with_a_reward_are_shown_with_it_and_where_there_are_none_it_stands_alone(make_run: MakeRun):
    task = task_of("reward", 0.5, 1.25)
    run = make_run(rows=[("q", "a gold", "a base", "a tuned"), ("text", "", "", "")], task=task, objective="instruct")
    with_objective(run, Instruct())
    file = run / "predictions.jsonl"
    told = [json.loads(line) | {"score_base": 0.5, "score_tuned": 1.25} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in told))
    cards = re.findall(r"<dl>\s*(<div class=\"(?:gold|base)\">.*?)</dl>", page(read_run_data(run)), re.DOTALL)
    shown = {" ".join(re.sub(r"<[^>]*>", " ", part).split()) for part in cards}
    assert shown == {
        "reference a gold base a base reward 0.500 tuned a tuned reward 1.250",
        "base reward 0.500 tuned reward 1.250",
    }


def test_an_answer_that_the_metric_takes_is_marked_right_though_its_letters_differ(make_run: MakeRun):
    rows = [("q1", "Paris", "Rome", "Paris."), ("q2", "Madrid", "x", "madrid"), ("q3", "Oslo", "oslo", "y")]
    run = make_run(rows=rows, task=task_of("exact_match", 0.3, 0.7), objective="instruct")
    with_objective(run, Instruct())
    html = page(read_run_data(run))
    fixed = html[html.index("Fixed by tuning") : html.index("Broken by tuning")]
    assert (fixed.count("✓ right"), fixed.count("✗ wrong")) == (2, 2)


def test_several_labels_of_a_row_are_shown_and_many_labels_listed(make_run: MakeRun):
    rows = [(f"q{n}", f"label {n}", "label 0", f"label {n}") for n in range(12)]
    html = page(read_run_data(make_run("many", rows=rows)))
    assert "Most frequent errors" in html
    assert 'class="matrix"' not in html
    run = make_run("several", rows=[("q", "x\ny", "x", "x\ny")], task=task_of("sample_f1", 0.5, 1.0))
    with_objective(run, Classify(labels=("x", "y"), multi=True, output="linear"))
    assert sections(page(read_run_data(run)))[3] == "labels"


def test_both_reports_are_written_and_twice_the_same(make_run: MakeRun):
    run = make_run(**everything())
    write_reports(run)
    first = [(run / name).read_bytes() for name in ("report.html", "README.md")]
    write_reports(run)
    assert [(run / name).read_bytes() for name in ("report.html", "README.md")] == first


def test_control_characters_do_not_reach_the_page(make_run: MakeRun):
    html = page(read_run_data(make_run(rows=[("a\x00b\x1bc", "good", "bad", "good"), ("b", "bad", "bad", "bad")])))
    assert "<bdi>abc</bdi>" in html


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no report\.json"):
        write_reports(tmp_path)


def test_the_title_says_data_objective_technique_and_model_instead_of_a_digest(make_run: MakeRun):
    html = page(read_run_data(make_run("reviews-4f1c9a", model="./models/minilm/")))
    words = "reviews.jsonl: classify with lora on minilm"
    assert f"<h1><bdi>{words}</bdi></h1>" in html
    assert f"<title>{words}: inconclusive" in html
    assert "run <bdi>reviews-4f1c9a</bdi>" in html


def test_every_metric_names_the_test_that_was_really_used(make_run: MakeRun):
    html = page(read_run_data(make_run()))
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>.*?<td>([^<]*)</td><td>[^<]*</td></tr>', html)
    assert ("accuracy", "McNemar, exact") in rows
    assert ("macro F1", "paired bootstrap") in rows
    graded = task_of("rouge_l", 0.2, 0.4).model_copy(update={"test": "McNemar, exact"})
    assert name_of_test(graded) == "McNemar, exact (every row scored 0 or 1)"


def test_a_threshold_is_explained_in_a_sentence(make_run: MakeRun):
    html = full_page(make_run)
    assert (
        "of the validation rows with at least this confidence, at least 90.0\N{NO-BREAK SPACE}% were answered" in html
    )
