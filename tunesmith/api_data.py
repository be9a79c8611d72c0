"""Functions of the commands on rows: `init`, `audit`, `collect`, `label`, `feedback` and `votes`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api import Section, Served, changes_of, messages, python_words, reporting, words

if TYPE_CHECKING:
    from tunesmith.annotation.import_export import Imported, VoteExport
    from tunesmith.annotation.label_rows import LabelExport
    from tunesmith.annotation.summary import Summary
    from tunesmith.config.annotated_yaml import AnnotatedRecipe
    from tunesmith.events import EventHandler
    from tunesmith.pipelines.audit import Done
    from tunesmith.pipelines.collect import Collected


@python_words
def init(
    data: str | Path = "",
    *,
    model: str | None = None,
    objective: Section | None = None,
    technique: Section | None = None,
    settings: Mapping[str, Any] | None = None,
    from_: str | Path | None = None,
    out: str | Path | None = "recipe.yaml",
    quick: bool = False,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> AnnotatedRecipe:
    """Write a commented recipe for a data file, or from another trainer's configuration.

    >>> import tunesmith
    >>> made = tunesmith.init("reviews.jsonl", out=None, quick=True, progress=False)
    >>> made.recipe.objective.kind
    'classify'

    Args:
        data: file of rows.
        model: alias, Hub id, folder or GGUF file; by default the cheapest that is expected to hold.
        objective: objective, by default detected from the columns.
        technique: technique.
        settings: further recipe keys, such as `{"schedule.epochs": 2}`.
        from_: configuration of axolotl or LLaMA-Factory to convert.
        out: file to write; None writes nothing.
        quick: choose the model without loading one.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event, see `tunesmith.events`.

    Returns:
        The recipe with `.recipe`, `.reasons`, `.candidates` (models), `.dropped` and `.text(folder)`.

    Raises:
        TunesmithError: the rows cannot be read, or the file exists.
    """
    from tunesmith.config.importers.convert import convert
    from tunesmith.errors import RecipeError
    from tunesmith.pipelines.init import draft_with_candidates

    changes = changes_of(settings, model=model, objective=objective, technique=technique)
    if from_ is not None:
        made = convert(Path(from_), data=str(data), changes=changes)
    elif data:
        with reporting(progress, callback) as callbacks:
            made = draft_with_candidates(
                str(data), changes=changes, quick=quick, offline=offline, on_event=callbacks.on_event
            ).made
    else:
        raise RecipeError("init: no input; give data, or from_='axolotl.yaml'")
    if out is not None:
        made.write(Path(out))
    return made


@python_words
def audit(
    source: str | Path,
    *,
    against: str | Path = "",
    fix: str | Path | None = None,
    html: str | Path | None = None,
    model: str = "",
    settings: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Done:
    """Check rows for problems and write a cleaned copy.

    >>> import tunesmith
    >>> done = tunesmith.audit("reviews.jsonl", progress=False)
    >>> done.audit.verdict
    'look'
    >>> [finding.kind for finding in done.audit.findings]
    ['exact_duplicate']

    Args:
        source: file of rows, Hub data set or recipe file.
        against: test rows that must not appear in the data.
        fix: file for a cleaned copy; its log is written to `FILE.log.jsonl`.
        html: write the findings as an HTML page.
        model: model that also checks labels and row lengths; an encoder also detects paraphrased test rows.
        settings: how rows are read, for example `{"objective.text": "body"}`.
        offline: do not access the network.
        progress: write progress lines.

    Returns:
        The findings as `.audit`, and `.fixed` if a cleaned copy was written.

    Raises:
        TunesmithError: the rows cannot be read, or an output would overwrite an input.
    """
    from tunesmith.data.cpu_count import cores
    from tunesmith.data.files import write_whole
    from tunesmith.pipelines.audit import audit_rows, page
    from tunesmith.pipelines.requests import AuditRequest

    pages = tuple(path for path in (_path(html),) if path is not None)
    changes = tuple(changes_of(settings))
    request = AuditRequest(str(source), str(against), model, changes, _path(fix), pages)
    done = audit_rows(request, workers=cores(), offline=offline, log=messages(progress))
    if html is not None:
        write_whole(Path(html), page(done.audit))
    return done


@python_words
def collect(
    sources: str | Path | Sequence[str | Path],
    *,
    as_: str = "domain",
    size: int = 1800,
    write: str | Sequence[str] = (),
    writer: str = "",
    writer_name: str = "",
    examples: str | Path = "",
    per_passage: int = 3,
    passages: int = 0,
    temperature: float = 0.7,
    max_new_tokens: int = 512,
    seed: int = 0,
    out: str | Path = "collected.jsonl",
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Collected:
    """Convert documents to rows, and generate further rows from them with a model.

    >>> import tunesmith
    >>> done = tunesmith.collect("manual.md", out="rows.jsonl", progress=False)
    >>> done.rows, done.path
    (1, 'rows.jsonl')

    Args:
        sources: file or folder of documents, or several.
        as_: row format: domain, instruct or rag.
        size: maximum characters per text.
        write: templates of generated rows: questions or calls, paraphrases, or a yaml file.
        writer: local model, or `http://HOST:PORT/v1`.
        writer_name: model name at that address.
        examples: example rows that are shown to the model.
        per_passage: generated rows per passage.
        passages: use this many random passages; 0: all.
        temperature: sampling temperature, 0 is greedy.
        max_new_tokens: maximum tokens per answer.
        seed: sampling seed.
        out: output file.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        Counts of rows by origin and the state of each file; the rows are in `.path`.

    Raises:
        TunesmithError: wrong input, or no rows.
    """
    from tunesmith.models.generation.sampling import Sampling
    from tunesmith.pipelines.collect import collect as collect_rows
    from tunesmith.pipelines.requests import WRITER_KEYS, CollectRequest, Writer, key_from_environment, sampling_with

    sampling_with(Sampling(), temperature=temperature, max_new_tokens=max_new_tokens)
    key = key_from_environment(*WRITER_KEYS)
    request = CollectRequest(
        sources=(str(sources),) if isinstance(sources, str | Path) else tuple(map(str, sources)),
        shape=as_,
        out=Path(out),
        size=size,
        templates=tuple(words(write)),
        writer=Writer(writer, writer_name, key, temperature, max_new_tokens, seed) if writer else None,
        seeds=str(examples),
        per_passage=per_passage,
        passages=passages,
    )
    with reporting(progress, callback) as callbacks:
        return collect_rows(request, on_event=callbacks.on_event, offline=offline)


@python_words
def label(
    data: str | Path,
    *,
    labels: str | Sequence[str] = (),
    spans: str | Sequence[str] = (),
    text: str = "",
    label: str = "",
    show: str | Sequence[str] = (),
    import_: str | Path = "",
    features: str = "tfidf",
    seed: int = 0,
    overlap: float = 0.0,
    raters: int = 2,
    store: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8377,
    offline: bool = False,
    progress: bool = True,
) -> Served:
    """Serve a page on which people label rows, the most informative rows first.

    >>> import tunesmith
    >>> page = tunesmith.label("messages.jsonl", labels=["spam", "ham"], port=0)  # doctest: +SKIP
    >>> page.url  # doctest: +SKIP
    'http://127.0.0.1:41233/'
    >>> page.close()  # or page.wait() until Ctrl-C  # doctest: +SKIP

    Args:
        data: file of rows.
        labels: initial labels; raters can add more.
        spans: mark spans of the texts, with these labels initially.
        text: column of the text to label; by default detected.
        label: column of the label, existing or new.
        show: columns to show above the text.
        import_: labelled rows to start with.
        features: features for choosing rows: tfidf, or an encoder such as minilm-l6.
        seed: seed for the first rows to label.
        overlap: share of items that several raters judge, 0 to 1.
        raters: raters per shared item.
        store: file of votes; default `DATA.labels.db`.
        host: bind address, any other than localhost requires a token.
        port: port, 0 picks a free one.
        offline: do not access the network.
        progress: write messages.

    Returns:
        The page, which answers in the background, with `.url`, `.wait()` and `.close()`.

    Raises:
        TunesmithError: the rows cannot be read, or the address is not available.
    """
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.annotation.label_rows import Columns
    from tunesmith.cli.commands.label import page_of
    from tunesmith.cli.page_server import opened
    from tunesmith.pipelines.requests import LabelRequest, listed
    from tunesmith.web.server import Address

    request = LabelRequest(
        source=str(data),
        columns=Columns(text, label, listed(show)),
        labels=listed(labels),
        spans=listed(spans),
        brought=str(import_),
        store=_path(store),
        overlap=Overlap(overlap, raters),
        features=features,
        seed=seed,
        offline=offline,
    )
    page = page_of(request, say=_silent, log=messages(progress))
    return Served(opened(page, Address(host, port), request.kept_in), f"labels of {data}")


@python_words
def export_labels(
    data: str | Path,
    export: str | Path,
    *,
    text: str = "",
    label: str = "",
    spans: str | Sequence[str] = (),
    format: str = "",
    store: str | Path | None = None,
    progress: bool = True,
) -> LabelExport:
    """Write the labelled rows of a labelling page, as `tunesmith label --export` does.

    Args:
        data: file of rows that was labelled.
        export: file to write, with the ending .jsonl, or .json for Label Studio.
        text: column of the text; by default detected.
        label: column of the label.
        spans: labels of spans; needed only for rows that neither have spans nor were opened with them.
        format: of a file with spans: rows, spacy (training data) or label-studio (tasks); by default rows.
        store: file of votes; default `DATA.labels.db`.
        progress: write messages.

    Returns:
        The number of rows written, and of rows left out because two labels have equally many votes.

    Raises:
        TunesmithError: there are no labels yet, or the file cannot be written.
    """
    from tunesmith.annotation.label_rows import Columns
    from tunesmith.pipelines.label import export_labels as write_labels
    from tunesmith.pipelines.requests import LabelRequest, listed

    request = LabelRequest(str(data), Columns(text, label), spans=listed(spans), form=format, store=_path(store))
    return write_labels(request, Path(export), log=messages(progress))


@python_words
def feedback(
    model: str | Path,
    *,
    against: str | Path = "",
    prompts: str | Path = "",
    column: str = "",
    rows: int = 100,
    as_written: bool = False,
    max_tokens: int = 0,
    thumbs: bool = False,
    gold: str | Path = "",
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int | None = None,
    seed: int = 0,
    overlap: float = 0.0,
    raters: int = 2,
    store: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8377,
    offline: bool = False,
    progress: bool = True,
) -> Served:
    """Generate answers and serve a page on which people judge them, blind and side by side.

    >>> import tunesmith
    >>> tunesmith.feedback("runs/replies", against="base").wait()  # until Ctrl-C  # doctest: +SKIP

    Args:
        model: run, adapter or model folder, alias, Hub id or GGUF file.
        against: model to compare with; `base` for the base of the model.
        prompts: file of prompts; default the test rows of the run.
        column: column of the prompts; by default detected.
        rows: number of random prompts, 0 for all.
        as_written: use the prompts unchanged, without the instruction of the run.
        max_tokens: maximum tokens per prompt, 0 for the limit of training.
        thumbs: show one answer at a time, rated good or bad.
        gold: pre-judged control items that detect inattentive raters.
        temperature: sampling temperature, 0 is greedy.
        top_p: sample from the likeliest tokens with this total probability.
        max_new_tokens: maximum tokens per answer; default as in training.
        seed: sampling seed.
        overlap: share of items that several raters judge, 0 to 1.
        raters: raters per shared item.
        store: file of votes; default `feedback.db` in the run folder.
        host: bind address, any other than localhost requires a token.
        port: port, 0 picks a free one.
        offline: do not access the network.
        progress: write messages.

    Returns:
        The page, which answers in the background, with `.url`, `.wait()` and `.close()`.

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    from tunesmith.annotation.assignment import Overlap
    from tunesmith.cli.commands.feedback import page_of
    from tunesmith.cli.page_server import opened
    from tunesmith.pipelines.feedback import usual_sampling
    from tunesmith.pipelines.requests import FeedbackRequest, sampling_with
    from tunesmith.web.server import Address, need_libraries

    need_libraries()  # fail before answers are generated
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    name = str(model).rstrip("/") or str(model)
    request = FeedbackRequest(
        model=name,
        against=str(against).rstrip("/"),
        prompts=str(prompts),
        column=column,
        rows=rows,
        as_written=as_written,
        limit=max_tokens,
        thumbs=thumbs,
        gold=str(gold),
        store=_path(store),
        overlap=Overlap(overlap, raters),
        sampling=sampling_with(usual_sampling(name, offline=offline), **given),
        offline=offline,
    )
    page = page_of(request, say=_silent, log=messages(progress))
    return Served(opened(page, Address(host, port), request.kept_in), f"feedback on {Path(name).name}")


@python_words
def votes_summary(store: str | Path, *, without: str | Sequence[str] = ()) -> Summary:
    """Summarise votes: progress, agreement between raters and win rates of the models.

    >>> import tunesmith
    >>> tunesmith.votes_summary("runs/replies/feedback.db").models[0].strength  # doctest: +SKIP
    0.61

    Args:
        store: file of votes, as written by `feedback`.
        without: ignore the votes of this rater, or of several.

    Returns:
        The summary.

    Raises:
        TunesmithError: the store is missing, or a rater is unknown.
    """
    from tunesmith.annotation.import_export import summarise_votes

    return summarise_votes(Path(store), without=words(without))


@python_words
def votes_export(
    store: str | Path, file: str | Path, *, format: str = "", without: str | Sequence[str] = ()
) -> VoteExport:
    """Write votes as rows for `objective: preference`.

    Args:
        store: file of votes, as written by `feedback`.
        file: file to write, with the ending .jsonl.
        format: pairs or thumbs; default: the format in which votes were cast.
        without: ignore the votes of this rater, or of several.

    Returns:
        The number of rows, their format, and the number of judged prompts without a preference.

    Raises:
        TunesmithError: the store is missing, or no vote makes a row.
    """
    from tunesmith.annotation.import_export import export_votes
    from tunesmith.cli.commands.votes import check_export

    return export_votes(Path(store), check_export(Path(file)), format=format, without=words(without))


@python_words
def votes_import(store: str | Path, file: str | Path, *, rater: str = "", offline: bool = False) -> Imported:
    """Add the votes of a file of preference rows to a store.

    Args:
        store: file of votes, created if it does not exist.
        file: file or Hub data set with preference pairs or ratings.
        rater: rater of the rows that name none.
        offline: do not access the network.

    Returns:
        The number of votes and items added, and of votes that the store contained already.

    Raises:
        TunesmithError: a row contains no judgement, or raters contradict themselves.
    """
    from tunesmith.annotation.import_export import import_votes

    return import_votes(Path(store), str(file), rater=rater, offline=offline)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(os.fspath(value))


def _silent(*_: object) -> None:
    """Print nothing when a page opens: the returned object shows the URL."""
