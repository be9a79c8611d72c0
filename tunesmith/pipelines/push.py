"""Upload of a run to the Hugging Face Hub: first a plan, which needs no token, then one commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunesmith.config import load_recipe
from tunesmith.data.readers.read import dataset_of
from tunesmith.data.remote import last_part
from tunesmith.display import Display, Displayed
from tunesmith.errors import CheckpointError, ModelError
from tunesmith.inference.identify import MANIFEST_FILE, find_model, read_manifest
from tunesmith.models.loading.base_from_run import model_folder
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.checkpoint import MANIFEST
from tunesmith.models.loading.hub import is_hub_id, pinned, reaching_hub
from tunesmith.models.loading.locate import locate
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.report.formatting import size
from tunesmith.report.run_data import Published
from tunesmith.report.upload import PAGE, REPORT, row_sources, upload_of


class UploadedFile(BaseModel):
    """A file in the repository."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int


class Push(Displayed, BaseModel):
    """An upload: its files and its place, and the commit once it is there."""

    model_config = ConfigDict(frozen=True)

    run: str
    repo: str
    private: bool
    base: str  # alias, or Hub id with the commit
    licence: str
    licence_reason: str = ""
    datasets: tuple[str, ...] = ()
    files: list[UploadedFile]
    replaces: str = ""  # commit of an earlier push
    deletes: list[str] = []  # files of the earlier push that this one does not have
    url: str = ""
    commit: str = ""  # empty if nothing was uploaded

    def display(self) -> Display:
        """Show what is uploaded, and every file in the table."""
        state = f"uploaded to {self.url}" if self.commit else f"not uploaded yet, to {self.repo}"
        return Display(
            f"Push({self.run}): {state}", self.lines(), ("file", "size"), [(f.name, size(f.bytes)) for f in self.files]
        )

    def lines(self) -> list[str]:
        """Return where it goes, who can read it, the licence, the base, and what is replaced, one line each."""
        total = size(sum(file.bytes for file in self.files))
        readers = "private: only you and its members read it" if self.private else "public: everyone can read it"
        reason = f" ({self.licence_reason})" if self.licence_reason else ""
        lines = [
            f"{len(self.files)} files, {total}, to {self.repo}",
            readers,
            f"licence: {self.licence}{reason}",
            f"base: {self.base}",
        ]
        if self.replaces:
            lines.append(f"replaces the files of the push {self.replaces[:7]}, README.md included")
        return lines + ([f"deletes {', '.join(self.deletes)}"] if self.deletes else [])


def push(
    run: Path,
    repo: str,
    *,
    confirm: Callable[[Push], bool],
    public: bool = False,
    report: bool = False,
    licence: str = "",
    base: str = "",
    offline: bool = False,
) -> Push:
    """Upload the model of a run with its card to a repository of the Hub, in one commit.

    Args:
        run: folder of a finished run.
        repo: `owner/name`, which is created unless it has an earlier push.
        confirm: receives the plan, and decides whether it is carried out.
        public: for everyone; an existing repository is never made public.
        report: also the report, without its example rows.
        licence: identifier of the Hub, such as apache-2.0; empty: derived from the base and the data.
        base: Hub id of the base, for a run over a copy of it in a folder.
        offline: do not ask the Hub for licences, and upload nothing.

    Raises:
        CheckpointError: the run is not finished, or was changed.
        ModelError: the base is not on the Hub, or the Hub refuses; then the repository is as it was.
    """
    if not is_hub_id(repo) or "@" in repo:
        raise ModelError(f"{repo}: not a repository of the Hub; write owner/name")
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; `tunesmith runs` lists what is here")
    place = _base_on_hub(run, base, offline=offline)
    rows = _rows(run)
    found, reason = (licence, "") if licence else _licence(place, rows, offline=offline)
    published = Published(repo, place, found, reason, tuple(sorted(set(rows.values()) - {""})))
    files = upload_of(run, published, report=report)
    names, replaces = ([], "") if offline else _earlier_push(repo, private=not public)
    plan = Push(
        run=str(run),
        repo=repo,
        private=not public,
        base=place,
        licence=found,
        licence_reason=reason,
        datasets=published.datasets,
        files=[
            UploadedFile(name=name, bytes=len(file) if isinstance(file, bytes) else file.stat().st_size)
            for name, file in sorted(files.items())
        ],
        replaces=replaces,
        deletes=[name for name in names if name not in files],
    )
    if not confirm(plan):
        return plan
    if offline:
        raise ModelError(f"{repo}: offline, so nothing can be uploaded; leave --offline out")
    url, commit = _upload(files, plan)
    return plan.model_copy(update={"url": url, "commit": commit})


def _base_on_hub(run: Path, base: str, *, offline: bool) -> str:
    """Return the base as everyone finds it: an alias, or a Hub id with the commit that has these weights."""
    manifest = read_manifest(find_model(run))
    if not base and (manifest.base in BUNDLED_MODELS or "@" in manifest.base):  # with the commit: found on the Hub
        return manifest.base
    base = base or manifest.base
    fix = "name the Hub id of the same weights with --base, or upload its merged export with `hf upload`"
    if not is_hub_id(base) or Path(base).exists():
        raise ModelError(f"{run}: its base {base} is a folder of this machine, which others do not have; {fix}")
    from tunesmith.models.loading.load import fingerprint_of

    folder = locate(base, offline=offline)
    if fingerprint_of(folder, where=base) != manifest.fingerprint:
        raise ModelError(f"{run}: was not tuned over the weights of {base}; {fix}")
    return pinned(base, folder)


def _rows(run: Path) -> dict[str, str]:
    """Return every source of rows of a run, and of the runs that it starts from, with its data set on the Hub or ""."""
    recipe = load_recipe(run / "recipe.yaml")[0]
    earlier: dict[str, str] = {}
    if ((base := model_folder(Path(recipe.model).expanduser())) / MANIFEST_FILE).exists():
        earlier = _rows(base.parent) if base.with_name("recipe.yaml").is_file() else {recipe.model: ""}
    return earlier | {source: dataset_of(source) for source in row_sources(recipe)}


def _licence(base: str, rows: Mapping[str, str], *, offline: bool) -> tuple[str, str]:
    """Return the licence that base and data have in common; or `other`, and why."""
    found = [(f"the base {base.partition('@')[0]}", _licence_of(base, "model", offline=offline))]
    found += [
        (f"the rows {last_part(source)}", _licence_of(dataset, "dataset", offline=offline))
        for source, dataset in rows.items()
    ]
    if unknown := [name for name, licence in found if licence in ("", "other", "unknown")]:
        return "other", f"the licence of {' and '.join(unknown)} is not known"
    if len({licence for _, licence in found}) > 1:
        return "other", "; ".join(f"{name} has {licence}" for name, licence in found)
    return found[0][1], ""


def _licence_of(name: str, kind: str, *, offline: bool) -> str:
    """Return the licence that a repository of the Hub states; empty if it states none or cannot be read."""
    if name in BUNDLED_MODELS:
        return BUNDLED_MODELS[name].licence.lower()
    if not name or offline:
        return ""
    from huggingface_hub import HfApi

    repo, _, revision = name.partition("@")
    with suppress(ModelError), reaching_hub(name):
        info: Any = HfApi().repo_info(repo, repo_type=kind, revision=revision or None)
        licence = info.card_data.get("license") if info.card_data else ""
        return str(licence or "")
    return ""


def _upload(files: Mapping[str, Path | bytes], plan: Push) -> tuple[str, str]:
    """Commit the files to a new repository, or to one with an earlier push; return its URL and the commit.

    If anything fails, the repository is as it was: the commit is the last step, and a new repository is deleted.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    repo = plan.repo
    if get_token() is None:
        raise ModelError(f"{repo}: no token of the Hub; log in with hf auth login, or set HF_TOKEN")
    api = HfApi()
    operations: list[Any] = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in plan.deletes]
    with quiet(), reaching_hub(repo, otherwise="push again: nothing was uploaded"):
        if not plan.replaces:
            api.create_repo(repo, private=plan.private)
        try:
            done = api.create_commit(
                repo, operations, commit_message="Upload a run of Tunesmith", parent_commit=plan.replaces or None
            )
        except BaseException:
            if not plan.replaces:
                with suppress(Exception):
                    api.delete_repo(repo)
            raise
    return f"{api.endpoint}/{repo}", str(done.oid)


def _earlier_push(repo: str, *, private: bool) -> tuple[list[str], str]:
    """Return the files that an earlier push has made, and its commit; both empty if there is no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with quiet(), reaching_hub(repo, otherwise="show the plan with --offline"):
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return [], ""
        names = {file.rfilename for file in info.siblings or ()}
        if not {MANIFEST, MANIFEST_FILE} <= names:
            raise ModelError(f"{repo}: the name is taken by a repository without a pushed run; choose another name")
        if bool(info.private) != private:
            state, fix = ("private", "leave --public out") if info.private else ("public", "add --public")
            raise ModelError(f"{repo}: this repository is {state}; {fix}, change it on the Hub, or choose another name")
        listed = json.loads(Path(api.hf_hub_download(repo, MANIFEST, revision=info.sha)).read_bytes())
    made = {name for name in listed if "/" not in name} | {MANIFEST, REPORT, PAGE}
    return sorted(names & made), str(info.sha)
