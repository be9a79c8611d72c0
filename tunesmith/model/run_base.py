"""A base out of a finished run: what an adapter learned becomes part of the weights, and another run begins there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tunesmith.data.files import is_there, sha256_of_file
from tunesmith.errors import ModelError
from tunesmith.model.checkpoint import MANIFEST, verify_folder
from tunesmith.model.quiet import quiet
from tunesmith.model.shipped import SHIPPED
from tunesmith.model.weights import read_json

PAGE = "tunesmith.json"
BEGUN = "run.json"  # what every run folder has from its beginning
ADAPTER = "adapter_model.safetensors"
# Techniques whose numbers can become weights of the base.
MERGED = ("lora", "ia3")


def model_folder(path: Path) -> Path:
    """The folder with the model of a run folder; any other folder as it is. Raises ModelError for an unfinished run."""
    if (path / "model" / PAGE).exists():
        return path / "model"
    if (path / BEGUN).exists() and not (path / "config.json").exists():
        raise ModelError(f"{path}: no finished model in it; finish it with `tunesmith tune`")
    return path


def base_place(name: str, folder: Path) -> str:
    """The base of the model in `folder`, as it is found from here.

    A relative path counts from where the run was made, mostly one of the folders that the run lies in.
    """
    if name in SHIPPED or is_there(Path(name).expanduser()):
        return name
    around = (place / name for place in folder.resolve().parents)
    return next((str(place) for place in around if place.is_dir() or place.is_file()), name)


def begins_from(folder: Path, *, where: str) -> tuple[str, str]:
    """The base that a run's adapter is to be merged into, and in how many bits it lay while the adapter was learned.

    Both empty for a folder whose weights are whole.

    Raises ModelError for a run that another cannot begin from.
    """
    if not (folder / PAGE).exists():
        return "", ""
    page = read_json(folder / PAGE, where=where)
    technique, objective = (str(page.get(key, {}).get("kind")) for key in ("technique", "objective"))
    # A masked-language head is left behind: what an encoder learned of a field lies in its body.
    if (folder / "head.safetensors").exists() and objective != "domain":
        raise ModelError(
            f"{where}: tuned for {objective} with a head of its own, which no other run can begin with; "
            f"begin from a run of domain or instruct, or from its base ({page.get('base')})"
        )
    if technique != "full" and technique not in MERGED:
        raise ModelError(
            f"{where}: what {technique} learned stands before the rows and is no weight, so it cannot be merged; "
            f"begin from a run of {', '.join(MERGED)} or full"
        )
    if (folder / MANIFEST).exists():
        verify_folder(folder, only="*.safetensors")
    if technique == "full":
        return "", ""
    return base_place(str(page.get("base")), folder), str(page["technique"].get("quantize", ""))


def merged(network: Any, folder: Path, *, found: str, where: str) -> tuple[Any, str]:
    """The network with the run's adapter merged in, and the fingerprint of the two; `found` is that of the base.

    Raises ModelError over another base than the run's own.
    """
    from peft import PeftModel

    wanted = read_json(folder / PAGE, where=where).get("fingerprint")
    if found != wanted:
        raise ModelError(f"{where}: tuned over another base ({wanted}, found {found}); give the base it was tuned on")
    with quiet():
        whole = PeftModel.from_pretrained(network, folder).merge_and_unload()
    whole.name_or_path = ""  # an adapter over it must not name the base below as its own
    return whole, hashlib.sha256(f"{found}{sha256_of_file(folder / ADAPTER)}".encode()).hexdigest()[:16]
