"""Sentence embeddings: texts as vectors in which similar meaning is a small distance. Letters: N texts, D hidden."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.errors import ModelError
from tunesmith.models.batch import pack, scored_tokens, split_by_tokens
from tunesmith.models.loading.checkpoint import MODEL_FILE
from tunesmith.models.loading.device import configure_device
from tunesmith.models.loading.load import Base, fingerprint_of, load_base, refuse_foreign_code
from tunesmith.models.loading.locate import AS_THEY_ARE, locate
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.weight_files import read_json, reading
from tunesmith.models.policy import Policy
from tunesmith.progress import track

# Modules of sentence-transformers that import nothing by a name in a file; Dense does, for its activation function.
KNOWN_MODULE = re.compile(r"sentence_transformers\.[\w.]*\.?(Transformer|Pooling|Normalize|Dense)")


@torch.inference_mode()
def sentence_vectors(base: Base, texts: Sequence[str], limit: int) -> NDArray[np.float32]:
    """Embed texts with a base model.

    Args:
        base: an encoder, whose states are averaged over the tokens, or a decoder, whose last state is taken.
        texts: N texts.
        limit: tokens of each text that are read.

    Returns:
        Vectors of length 1, [N, D], in the order of the texts.
    """
    policy = Policy.over(base.network, family=base.family)
    policy.train(False)
    template = Template(base.tokenizer, chat=False)
    ids = [template.document(text, limit=limit).ids for text in texts]
    longest_first = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    vectors = torch.zeros(len(ids), policy.hidden)
    divided = split_by_tokens(longest_first, [len(row) for row in ids], scored_tokens(policy.device))
    for rows in track(divided, "embedding", unit="texts", size=len):
        # Without learned ids: a row's last learned id is not packed, and would be missing from its own vector.
        tokens = [Tokens.of(ids[row]) for row in rows]
        vectors[rows] = policy.pooled(pack(tokens, share=False).to(policy.device)).float().cpu()
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that embeds documents and the questions about them, see `open_encoder`."""

    base: Base | None
    library: Any  # the SentenceTransformer; None for a base whose states are averaged without a prompt
    fingerprint: str  # equal for equal weights, pooling and prompts
    limit: int = 0  # tokens of a text, for which a run was tuned; 0: any

    def vectors(self, texts: Sequence[str], limit: int, *, questions: bool = False) -> NDArray[np.float32]:
        """Return vectors of length 1, [N, D]; `limit` is the tokens of each text that are read, with its prompt.

        A run of `embed` reads as many as it was tuned and measured with.
        """
        limit = self.limit or limit
        if self.base is not None:
            return sentence_vectors(self.base, texts, limit)
        self.library.max_seq_length = limit
        embed = self.library.encode_query if questions else self.library.encode_document
        vectors: NDArray[np.float32] = embed(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors


def open_encoder(name: str, *, offline: bool = False) -> Encoder:
    """Load an embedding model as its folder states: pooling, prompts for questions and documents, further layers.

    Most models average the states of all tokens: `sentence_vectors` gives the same in 0.7 of the processor time.

    Args:
        name: alias, Hub id, folder, run folder or GGUF file.
        offline: use only local files.

    Raises:
        ModelError: as `load_base` does, or if a file that it states is missing, unsafe or needs sentence-transformers,
            or a run with prompts has no such file.
    """
    # The same library for products whether or not a model ran before: an index that is built again has the same bits.
    configure_device(AS_THEY_ARE.device, threads=None)
    folder = None if name.lower().endswith(".gguf") else locate(name, offline=offline)
    stated = {} if folder is None else _stated(folder, where=name)
    own = folder is not None and (folder / MODEL_FILE).is_file()
    run = read_json(folder / MODEL_FILE, where=name) if folder and own else {}
    objective = run.get("objective", {})
    if not stated and (objective.get("query_prompt") or objective.get("passage_prompt")):
        raise ModelError(f"{name}: an adapter of a decoder with prompts is not searched by; tune with technique: full")
    limit = int(run["limit"]) if "pooling" in objective else 0  # an objective of vectors
    if folder is None or not stated or _averages(stated, own=own):
        base = load_base(name, offline=offline)
        return Encoder(base, None, base.fingerprint, limit)
    fingerprint = fingerprint_of(folder, where=name)
    refuse_foreign_code(read_json(folder / "config.json", where=name), where=name)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ModelError(
            f"{name}: its files state how it embeds; pip install 'tunesmith[rag]' to follow them"
        ) from None
    with reading(name, "sentence-transformers cannot read it"), quiet():
        options = {"use_safetensors": True, "dtype": torch.float32}
        library = SentenceTransformer(
            str(folder),
            device=AS_THEY_ARE.device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=options,
        )
    digest = hashlib.sha256(json.dumps([fingerprint, stated], sort_keys=True).encode())
    return Encoder(None, library, digest.hexdigest()[:16], limit)


def _stated(folder: Path, *, where: str) -> dict[str, Any]:
    """Return what the files of sentence-transformers in a folder state, by file; empty if there are none."""
    if not (folder / "modules.json").is_file():
        return {}
    with reading(where, "modules.json is damaged"):
        modules = [
            (str(module["type"]), str(module["path"])) for module in json.loads((folder / "modules.json").read_bytes())
        ]
    prompts = folder / "config_sentence_transformers.json"
    found: dict[str, Any] = {"modules": modules, "prompts": read_json(prompts, where=where) if prompts.exists() else {}}
    for kind, path in modules:
        part = folder / path
        if not KNOWN_MODULE.fullmatch(kind) or Path(path).name != path or (path and any(part.glob("*.bin"))):
            raise ModelError(f"{where}: {kind} is code or pickled weights, which are not loaded; use another model")
        if path and (part / "config.json").is_file():
            found[path] = read_json(part / "config.json", where=where)
            function = str(found[path].get("activation_function", "torch.nn."))
            if not function.startswith("torch.nn."):
                raise ModelError(
                    f"{where}: {path}/config.json names {function}, which is not loaded; use another model"
                )
        elif kind.endswith("Pooling"):
            raise ModelError(f"{where}: {path}/config.json is missing; download the model again")
    return found


def _averages(stated: Mapping[str, Any], *, own: bool) -> bool:
    """Return whether a model has no prompts and averages the states of all tokens, or is a run's decoder."""
    if any((stated["prompts"].get("prompts") or {}).values()):
        return False
    plain = []
    usual = [{"pooling_mode_mean_tokens"}, *([{"pooling_mode_lasttoken"}] if own else [])]
    for kind, path in stated["modules"]:
        if kind.endswith("Pooling"):
            modes = {key for key, value in stated[path].items() if key.startswith("pooling_mode") and value}
            plain.append(stated[path].get("pooling_mode") == "mean" or modes in usual)
        elif not kind.endswith((".Transformer", ".Normalize")):
            return False
    return plain == [True]
