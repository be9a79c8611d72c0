"""Functions of the commands that use a tuned model: `load`, `evaluate`, `ask`, `export`, `serve`, `runs` and others."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.api import Listing, Served, changes_of, python_words, reporting, words

if TYPE_CHECKING:
    from tunesmith.events import EventHandler
    from tunesmith.inference.local_model import LocalModel
    from tunesmith.inference.scoring import Classified
    from tunesmith.models.certificate import Certificate
    from tunesmith.models.generation.sampling import Reply
    from tunesmith.pipelines.compare.ask import ArmReply
    from tunesmith.pipelines.demo import Demo
    from tunesmith.pipelines.evaluate import Compared, ScoredAlone
    from tunesmith.pipelines.push import Push
    from tunesmith.pipelines.verify.challenge import Challenge
    from tunesmith.pipelines.verify.verify import ChatVerified, Verified
    from tunesmith.report.run_diff import RunDiff
    from tunesmith.report.schema import Export


@python_words
def load(
    run: str | Path,
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    offline: bool = False,
) -> LocalModel:
    """Load the tuned model of a run.

    >>> import tunesmith
    >>> model = tunesmith.load("runs/reviews")  # doctest: +SKIP
    >>> model.classify("great phone").label  # doctest: +SKIP
    'good'

    Args:
        run: a run folder, the `model/` folder in it, the Hub id of a pushed run, or the URL of a run folder.
        device: `auto`, `cpu`, `cuda` or a device such as `cuda:1`.
        dtype: precision of weights and computation; auto: float32 on a CPU, bfloat16 on GPUs that have it.
        offline: do not access the network.

    Returns:
        A model with `classify`, `generate`, `reply`, `embed`, `reward`, as its objective allows.

    Raises:
        TunesmithError: the folder is not a run, or its base model cannot be loaded.
    """
    from tunesmith.inference.saved_model import load as load_model

    return load_model(run, device=device, dtype=dtype, threads=None, offline=offline)


@python_words
def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    against: str | Path = "",
    objective: str = "",
    base: str | Path = "",
    task: str = "",
    rows: int = 0,
    answers: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    engine: str = "",
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> ScoredAlone | Compared:
    """Score a model on a file, alone or against another model.

    >>> import tunesmith
    >>> score = tunesmith.evaluate("runs/reviews", "new.jsonl", against="base")  # doctest: +SKIP
    >>> score.delta, score.ci95  # doctest: +SKIP
    (0.087, (0.031, 0.144))

    Args:
        model: run, adapter or model folder, alias, Hub id or GGUF file.
        data: rows to score on.
        against: model to compare with; `base` for the base of the model.
        objective: classify, domain or instruct; default: that of the run, or detected from the rows.
        base: base model for an adapter.
        task: task of a multitask run.
        rows: score on this many random rows, 0 for all.
        answers: write prompts and answers to this jsonl file.
        settings: how rows are read, for example `{"objective.text": "body", "data.group": "thread"}`.
        engine: vllm or sglang (with options of it), or the address of a running one; empty for torch.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        The headline at the top level, and every metric in `.tasks`.

    Raises:
        TunesmithError: wrong input, or a model that cannot be loaded.
    """
    from tunesmith.cli.commands.evaluate import write_answers
    from tunesmith.pipelines.evaluate import evaluate as evaluate_rows
    from tunesmith.pipelines.requests import EvaluateRequest

    changes = tuple(changes_of(settings))
    request = EvaluateRequest(
        str(model), str(data), str(against), objective, str(base), rows=rows, changes=changes, task=task, engine=engine
    )
    with reporting(progress, callback) as callbacks:
        done = evaluate_rows(request, on_event=callbacks.on_event, offline=offline)
    if answers is not None:
        write_answers(Path(answers), done.answers)
    return done.page


@python_words
def ask(
    folder: str | Path,
    text: str,
    *,
    task: str = "",
    arm: str = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    thinking: bool | None = None,
    offline: bool = False,
    progress: bool = False,
) -> Classified | Reply | list[tuple[str, float]] | float | dict[str, Any] | ArmReply:
    """Answer one text with a tuned model, or with an arm of a comparison; `load` a model for several texts.

    >>> import tunesmith
    >>> tunesmith.ask("runs/reviews", "great phone")  # doctest: +SKIP
    Classified('good', 0.981)

    Args:
        folder: folder of a run or of a comparison.
        text: the text.
        task: task of a multitask run.
        arm: arm of a comparison; default: the recommended one.
        temperature: sampling temperature, 0 is greedy.
        top_p: sample from the likeliest tokens with this total probability.
        max_new_tokens: maximum tokens per answer; default as in training.
        seed: sampling seed.
        thinking: whether a model that can think does so before the answer; default as in training.
        offline: do not access the network.
        progress: show progress of a comparison that has to build an arm.

    Returns:
        Labels with probabilities, a number, a reply, words at the mask token, or the answer of an arm.

    Raises:
        TunesmithError: the folder is not a run or a comparison, or a setting is invalid.
    """
    from tunesmith.cli.commands.chat import check_arm_options, check_run_options
    from tunesmith.cli.commands.compare import KEY
    from tunesmith.cli.options import sampling_of
    from tunesmith.inference.identify import find_model, read_manifest
    from tunesmith.pipelines.compare.ask import ArmQuestion, ask_arm, compared
    from tunesmith.pipelines.search import nearest

    args = Namespace(
        folder=Path(folder),
        task=task,
        arm=arm,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        thinking=thinking,
    )
    if compared(args.folder):
        check_arm_options(args)
        with reporting(progress) as callbacks:
            question = ArmQuestion(text, arm, os.environ.get(KEY, ""))
            return ask_arm(args.folder, question, callbacks=callbacks, offline=offline)
    check_run_options(args)
    found = find_model(folder, offline=offline)
    if read_manifest(found).objective.searches:
        with reporting(progress) as callbacks:
            return nearest(found.parent, text, on_event=callbacks.on_event, offline=offline)
    model = load(folder, offline=offline).at(task)
    sampling = sampling_of(args, model.sampling_for(thinking))
    return model.answer(text, sampling=sampling, thinking=thinking)


@python_words
def export(
    folder: str | Path,
    *,
    format: str = "",
    dtype: str = "",
    smallest: bool = False,
    margin: float | None = None,
    verify: bool = True,
    out: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Export:
    """Export a run for transformers, llama.cpp, Ollama or PEFT, and verify it there.

    >>> import tunesmith
    >>> done = tunesmith.export("runs/reviews", format="gguf", dtype="q8_0")  # doctest: +SKIP
    >>> done.same_answers  # doctest: +SKIP
    1.0

    Args:
        folder: folder of a finished run.
        format: merged (default), gguf, adapter or compressed-tensors.
        dtype: f32, f16 or bf16 for merged, f16, q8_0, q4_k_m and others for gguf, int8 or fp8 for compressed-tensors;
            default: the first of each.
        smallest: write the smallest gguf file that is shown to be not worse than the tuned model on held-out rows.
        margin: loss that `smallest` does not accept, in points of the metric (default 1).
        verify: ask the export the challenge of the run, as `verify` does; the result has the verdict.
        out: folder of the export; default `RUN/export/FORMAT-DTYPE`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        The export with its folder and the agreement with the run.

    Raises:
        TunesmithError: the run is not finished, the format does not support it, or the answers differ too much.
    """
    from tunesmith.pipelines.export.export import export as export_run
    from tunesmith.pipelines.export.request import ExportRequest

    request = ExportRequest.of(format, dtype, smallest=smallest, margin=margin, verify=verify)
    place = None if out is None else Path(out)
    with reporting(progress, callback) as callbacks:
        return export_run(Path(folder), request, out=place, on_event=callbacks.on_event, offline=offline)


@python_words
def verify(
    run: str | Path,
    *,
    at: str | Path = "",
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Verified:
    """Decide whether a server, folder or file answers as the tuned model, its base, a damaged copy or something else.

    >>> import tunesmith
    >>> tunesmith.verify("runs/replies", at="http://127.0.0.1:8378/v1").verdict  # doctest: +SKIP
    'tuned'

    Args:
        run: run folder, or the file of a challenge.
        at: address of an OpenAI-compatible server (`URL` or `URL#MODEL`), model folder, run or .gguf file; default: the
            run itself.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        The verdict as `.verdict`, and its evidence as `.sentence`. `.error_rate` is how often a model for which the
        verdict is wrong would give such answers.

    Raises:
        TunesmithError: the run has no challenge, or the target does not answer.
    """
    from tunesmith.pipelines.verify.challenge import read_challenge
    from tunesmith.pipelines.verify.verify import verify as verify_target

    with reporting(progress, callback) as callbacks:
        challenge = read_challenge(Path(run))
        return verify_target(challenge, str(at or run), on_event=callbacks.on_event, offline=offline)


@python_words
def verify_chat(
    run: str | Path,
    *,
    at: str | Path = "",
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> ChatVerified:
    """Compare how a server, folder or file renders and parses chats with the golden conversations of a run.

    >>> import tunesmith
    >>> tunesmith.verify_chat("runs/replies", at="http://127.0.0.1:8378/v1").difference  # doctest: +SKIP

    Args:
        run: run folder, or its file `chat.json`.
        at: as in `verify`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        What was compared, and the first difference as `.difference`.

    Raises:
        TunesmithError: the run has no such file, the target does not answer, or nothing can be compared.
    """
    from tunesmith.pipelines.verify.verify import verify_chat as verify_target

    with reporting(progress, callback) as callbacks:
        return verify_target(Path(run), str(at or run), on_event=callbacks.on_event, offline=offline)


@python_words
def make_challenge(
    model: str | Path, *, base: str | Path = "", rows: str | Path = "", out: str | Path = "", offline: bool = False
) -> Challenge:
    """Make the challenge of an adapter that another program trained, or of a run that has none.

    >>> import tunesmith
    >>> len(tunesmith.make_challenge("lora", base="smollm2-135m", out="challenge.json").prompts)  # doctest: +SKIP
    32

    Args:
        model: adapter or run.
        base: base model of the adapter; default: the one that it names.
        rows: file with prompts that it was tuned for; default: general questions only.
        out: file to write it to, for `verify`.
        offline: do not access the network.

    Returns:
        The challenge.

    Raises:
        TunesmithError: the model cannot be loaded, or answers as its base does.
    """
    from tunesmith.data.files import write_whole
    from tunesmith.pipelines.verify.make import challenge_of, prompts_in

    prompts = prompts_in(str(rows), offline=offline) if rows else ()
    made = challenge_of(model, base=str(base), rows=prompts, offline=offline)
    if out:
        write_whole(Path(out), made.model_dump_json(indent=1))
    return made


@python_words
def push(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    report: bool = False,
    license: str = "",
    base: str = "",
    yes: bool = False,
    offline: bool = False,
) -> Push:
    """Show what an upload of a run to the Hugging Face Hub contains, and upload it with `yes`.

    >>> import tunesmith
    >>> print(tunesmith.push("runs/reviews", "me/reviews"))  # doctest: +SKIP
    Push(runs/reviews): not uploaded yet, to me/reviews
      8 files, 21.4 MB, to me/reviews
      private: only you and its members read it
      licence: other (the licence of the rows reviews.jsonl is not known)
      base: smollm2-135m
    >>> tunesmith.push("runs/reviews", "me/reviews", yes=True).url  # doctest: +SKIP
    'https://huggingface.co/me/reviews'

    Args:
        folder: folder of a finished run.
        repo: repository `owner/name`, created if it does not exist.
        public: let everyone read it.
        report: also upload the report, without its example rows.
        license: licence of the model, as the Hub names it; default: that of base and data, `other` if it is not known.
        base: Hub id of the base, for a run over a copy of it in a folder.
        yes: upload; otherwise nothing is sent.
        offline: do not access the network.

    Returns:
        The plan with every file, and `.url` and `.commit` after an upload.

    Raises:
        TunesmithError: the run is not finished, or the Hub refuses; then the repository is as it was.
    """
    from tunesmith.pipelines.push import push as push_run

    return push_run(
        Path(folder),
        repo,
        confirm=lambda plan: yes,
        public=public,
        report=report,
        licence=license,
        base=str(base),
        offline=offline,
    )


@python_words
def serve(
    runs: str | Path | Sequence[str | Path],
    *,
    engine: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    split: str | Sequence[str] = (),
    rows: int | None = None,
    max_queue: int = 256,
    max_tokens: int = 4096,
    seconds: float = 120.0,
    token_file: str | Path = "tunesmith-serve.token",
    admin_token_file: str | Path | None = None,
    store: str | Path | None = None,
    thinking: bool | None = None,
    shadow: str = "",
    shadow_margin: float = 0.05,
    shadow_control: float = 0.05,
    shadow_price: tuple[float, float] | None = None,
    shadow_folder: str | Path | None = None,
    shadow_http: bool = False,
    keep_rows: Literal["none", "asked", "all"] = "none",
    host: str = "127.0.0.1",
    port: int = 8378,
    offline: bool = False,
) -> Served:
    """Serve runs through an OpenAI-compatible API.

    >>> import tunesmith
    >>> with tunesmith.serve("runs/replies", port=0) as served:  # doctest: +SKIP
    ...     print(served.url)
    http://127.0.0.1:40123/

    Args:
        runs: run folder or .gguf file, `NAME=` and one of these, or several.
        engine: torch, llamacpp, vllm or sglang (with options of it), or the address of a running one; default:
            llamacpp for .gguf files, torch otherwise.
        dtype: precision of weights and computation with the torch engine; auto: float32 on a CPU, bfloat16 on GPUs
            that have it.
        split: model name that splits requests by weight: `NAME=RUN:0.9,RUN:0.1`.
        rows: concurrent requests; default 32, llamacpp 8.
        max_queue: maximum queued requests.
        max_tokens: maximum tokens per answer.
        seconds: time limit per request.
        token_file: file of the access token for other machines.
        admin_token_file: file of the token of /admin; default: `admin.token` in the cache folder.
        store: file of ratings; default: `thumbs.db` in the folder of each run.
        thinking: whether models that can think do so unless a request says otherwise; default as in training.
        shadow: `URL#MODEL` of a paid model that answers until the one run is shown to agree with it.
        shadow_margin: share of chats in which the run may answer otherwise than the paid model.
        shadow_control: share of chats that always go to both.
        shadow_price: price per million tokens that the paid model reads and writes.
        shadow_folder: folder of figures and decisions; default: `shadow` in the folder of the run.
        shadow_http: allow an address without encryption on another machine.
        keep_rows: compared chats whose texts are kept, personal data masked.
        host: bind address, any other than localhost requires a token.
        port: port, 0 picks a free one.
        offline: do not access the network.

    Returns:
        The server, which answers in the background, with `.url`, `.wait()` and `.close()`; the API is at `URLv1`.

    Raises:
        TunesmithError: a model cannot be loaded, or the address is not available.
    """
    from tunesmith.cli.commands.serve import opened

    given = [runs] if isinstance(runs, str | Path) else list(runs)
    args = Namespace(
        runs=[str(run) for run in given],
        engine=engine,
        dtype=dtype,
        split=words(split),
        rows=rows,
        max_queue=max_queue,
        max_tokens=max_tokens,
        seconds=seconds,
        token_file=Path(token_file),
        admin_token_file=None if admin_token_file is None else Path(admin_token_file),
        store=None if store is None else Path(store),
        thinking=thinking,
        shadow=shadow,
        shadow_margin=shadow_margin,
        shadow_control=shadow_control,
        shadow_price=shadow_price,
        shadow_folder=None if shadow_folder is None else Path(shadow_folder),
        shadow_http=shadow_http,
        keep_rows=keep_rows,
        json=True,  # prints nothing
        host=host,
        port=port,
        offline=offline,
    )
    return Served(opened(args, say=lambda *_: None), ", ".join(Path(run).name for run in args.runs))


@python_words
def runs(folder: str | Path = "runs") -> Listing:
    """List the runs of a folder and their results, newest last.

    >>> import tunesmith
    >>> [run["report"]["task"]["tuned"] for run in tunesmith.runs() if run["report"]]  # doctest: +SKIP
    [0.874, 0.898]

    Args:
        folder: folder of the runs, or one run.

    Returns:
        One dictionary per run, with the keys of `tunesmith runs --json`; a notebook shows a table.

    Raises:
        CheckpointError: there is no such folder.
    """
    from tunesmith.cli.commands.runs import COLUMNS, cells
    from tunesmith.errors import CheckpointError
    from tunesmith.report.run_list import list_runs

    place = Path(folder)
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such folder; name a folder with runs")
    found = list_runs(place)
    names = [name.rstrip(">") for name in COLUMNS]
    return Listing(f"Runs({place})", found, names, [dict(zip(names, cells(run), strict=True)) for run in found])


@python_words
def diff_runs(a: str | Path, b: str | Path, *, task: str = "") -> RunDiff:
    """Compare the predictions of two runs on the same test rows.

    Args:
        a: run folder.
        b: run folder; the difference is b - a.
        task: task to compare, for multitask runs.

    Returns:
        The difference with its interval, the settings that differ, and the rows that are answered differently.

    Raises:
        CheckpointError: a run is not finished, or the runs were scored on different rows.
    """
    from tunesmith.report.run_diff import diff_runs as compare_runs

    return compare_runs(Path(a), Path(b), task)


@python_words
def list_models(*, fetch: bool = False, offline: bool = False) -> Listing:
    """List the bundled models, as `tunesmith models` does; `tunesmith.models` is a package.

    >>> import tunesmith
    >>> [model["alias"] for model in tunesmith.list_models()]
    ['smollm2-135m', 'minilm-l6']

    Args:
        fetch: download them to the cache.
        offline: do not access the network.

    Returns:
        One dictionary per model, with the keys of `tunesmith models --json`.

    Raises:
        ModelError: a model cannot be downloaded.
    """
    from tunesmith.cli.commands.runs import list_models as list_bundled

    found = list_bundled(fetch_all=fetch, offline=offline)
    return Listing("Models", found, ("alias", "about", "in_cache", "licence", "hub_id"))


@python_words
def check_model(
    model: str | Path, *, offline: bool = False, progress: bool = True, callback: EventHandler | None = None
) -> Certificate:
    """Measure on a model what training, generation and exports rely on, as `tunesmith models check` does.

    >>> import tunesmith
    >>> tunesmith.check_model("smollm2-135m").failed  # doctest: +SKIP
    ()

    Args:
        model: alias, Hub id, folder, run folder or GGUF file.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        The certificate, with every claim in `.checks`.

    Raises:
        ModelError: it cannot be loaded; the message says why, and what to choose instead.
    """
    from tunesmith.pipelines.certify.certify import check_model as measure

    with reporting(progress, callback) as callbacks:
        return measure(str(model), on_event=callbacks.on_event, offline=offline)


@python_words
def demo(
    *,
    out: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    callback: EventHandler | None = None,
) -> Demo:
    """Tune two bundled models on bundled product reviews, and classify three new sentences.

    >>> import tunesmith
    >>> done = tunesmith.demo()  # takes a few minutes  # doctest: +SKIP
    >>> done.encoder.report.task.tuned > done.encoder.report.task.base  # doctest: +SKIP
    True

    Args:
        out: folder for both runs; default `runs`.
        offline: do not access the network.
        progress: show progress.
        callback: receives every progress event.

    Returns:
        Both runs as `.encoder` and `.decoder`, and `.answers`.

    Raises:
        TunesmithError: the bundled models cannot be loaded.
    """
    from tunesmith.pipelines.demo import demo as run_demo

    with reporting(progress, callback) as callbacks:
        return run_demo(Path(out or "runs"), callbacks=callbacks, offline=offline)


@python_words
def doctor(*, clear_cache: bool = False) -> Listing:
    """Check this installation and machine.

    >>> import tunesmith
    >>> [check["name"] for check in tunesmith.doctor() if check["state"] == "fail"]  # doctest: +SKIP
    []

    Args:
        clear_cache: first delete what runs keep to compute it only once; models, certificates and times stay.

    Returns:
        One dictionary per check, with `name`, `state` (ok, warn or fail), `finding` and `fix`.
    """
    from tunesmith.cli.commands.doctor import all_checks
    from tunesmith.data.user_cache import clear_caches

    if clear_cache:
        clear_caches()
    checks = [check._asdict() for check in all_checks()]
    return Listing("Checks", checks, ("state", "name", "finding", "fix"))
