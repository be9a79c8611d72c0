"""The process that runs llama.cpp's own converter: `python -m tunesmith.inference.export.gguf_driver JOB`.

The converter comes with its own version of the package `gguf`, and imports whatever a family needs.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

CALLS = "tokenizer_calls.json"
REFUSAL = "refusal.txt"  # in the folder of the model: why it cannot be expressed


class Refusal(SystemExit):
    """The model cannot be expressed; ends the process with the reason on stderr."""


def main(job: dict[str, Any]) -> None:
    """Convert a model in the format of transformers, or an adapter in that of PEFT with the configuration of its base.

    Args:
        job: `converter`, folder of llama.cpp's scripts; `folder`, of the model or the adapter; `file` to write;
            `memory`, the limit in bytes, on Linux; for a model its `name`, and whether it `slides`: some of its
            layers have a sliding attention window.
    """
    if sys.platform != "win32":
        import resource

        with suppress(ValueError):  # a lower limit may be in force
            resource.setrlimit(resource.RLIMIT_DATA, (job["memory"], job["memory"]))
    root = Path(job["converter"])
    sys.path.insert(0, str(root))
    conversion: Any = importlib.import_module("conversion")  # it puts its own gguf first
    forbid_code()
    conversion.ModelBase.no_mtp = True  # transformers neither loads nor writes layers that predict further tokens
    if "name" not in job:
        sys.argv = ["", "--base", job["folder"], "--outfile", job["file"], job["folder"]]
        runpy.run_path(str(root / "convert_lora_to_gguf.py"), run_name="__main__")
        return
    hparams = _with_former_keys(conversion.ModelBase.load_hparams(Path(job["folder"]), False))
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    try:
        family = conversion.get_model_class(architecture)
    except NotImplementedError:
        raise Refusal(f"llama.cpp does not know {architecture}") from None
    f16 = importlib.import_module("gguf").LlamaFileType.MOSTLY_F16
    model = family(Path(job["folder"]), f16, Path(job["file"]), model_name=job["name"], hparams=hparams)
    inner = getattr(model, "impl", model)
    inner.set_vocab = lambda: _write_tokenizer(inner, slides=job["slides"])
    model.write()


def forbid_code() -> None:
    """Let no class come from the code of a model in this process: the converter loads some tokenizers with theirs."""
    from transformers import dynamic_module_utils

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Refusal("the converter asks for code from the folder of the model")

    dynamic_module_utils.get_cached_module_file = refuse


def _with_former_keys(hparams: dict[str, Any]) -> dict[str, Any]:
    """Add the keys under which transformers 4 stored values, which the converter still reads for some families."""
    rope = hparams.get("rope_parameters") or {}
    former = {"n_ctx": hparams.get("n_positions"), "rotary_pct": rope.get("partial_rotary_factor")}
    # Heads of latent attention have several widths; the converter writes them itself.
    if hparams.get("num_attention_heads") and "hidden_size" in hparams and not hparams.get("kv_lora_rank"):
        former["head_dim"] = hparams["hidden_size"] // hparams["num_attention_heads"]
    return {key: value for key, value in former.items() if value is not None} | hparams


def _write_tokenizer(model: Any, *, slides: bool) -> None:
    """Write the tokenizer, with llama.cpp's own name of its pre-tokenizer if it is a published one."""
    if slides and not any(key.endswith(".attention.sliding_window") for key in model.gguf_writer.kv_data[0]):
        raise Refusal("llama.cpp ignores the sliding attention window of its layers")
    size = model.gguf_writer.tensors[0]["token_embd.weight"].shape[0]  # of Gemma 3, only those of the tokenizer
    for call, value in json.loads((model.dir_model / CALLS).read_text(encoding="utf-8")):
        if call in ("add_token_list", "add_token_types", "add_token_scores"):
            value = value[:size]
        if call == "add_tokenizer_pre" and value != "default":
            try:
                value = model.get_vocab_base_pre(_Encoder(model.dir_model / "tokenizer.json"))
            except NotImplementedError:
                if not value:
                    problem = "llama.cpp has no pre-tokenizer that splits text as this tokenizer does"
                    raise Refusal(problem) from None
        getattr(model.gguf_writer, call)(value)


class _Encoder:
    """The tokenizer of a folder, as far as the converter needs it to recognize it."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        main(given)
    except Refusal as error:
        (Path(given["folder"]) / REFUSAL).write_text(str(error), encoding="utf-8")
        raise
