"""`python -m bench.peers.litgpt_side JOB SIDE OUT`: LitGPT's network and the step of its `finetune_lora`.

Its weights are the job's, by its own conversion, and its starting updates those of the job's adapter. Everything is in
bf16 where the job is (its default, "bf16-true"). Not its defaults: a whole window as batch (default: one row), no
logging, no checkpoints.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Fabric
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from bench.peers.job import Job, Meter, numbers_of, started, timed

NAME = "SmolLM2-135M-Instruct"
WHERE = ("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp")
MLP = {"gate_proj": "fc_1", "up_proj": "fc_2", "down_proj": "proj"}


def network(job: Job) -> GPT:
    """LitGPT's network with the job's weights and fresh updates."""
    rank = job.technique["rank"]
    model = GPT(Config.from_name(NAME, lora_r=rank, lora_alpha=2 * rank, **dict.fromkeys(WHERE, True)))
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(model.config, {}, weights, load_file(Path(job.model) / "model.safetensors"))
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("lora_" in key for key in missing.missing_keys)
    mark_only_lora_as_trainable(model)
    return model


def updates(model: GPT) -> dict[str, torch.Tensor]:
    """The updates under PEFT's names, as views of LitGPT's, which keeps those of query, key and value in one tensor."""
    found = {}
    for number, block in enumerate(model.transformer.h):
        layer = f"base_model.model.model.layers.{number}"
        qkv, parts = block.attn.qkv, ("q_proj", "k_proj", "v_proj")
        for name, a, b in zip(parts, qkv.lora_A.data.chunk(3), qkv.lora_B.data.split(qkv.qkv_shapes), strict=True):
            found |= {f"{layer}.self_attn.{name}.lora_A.weight": a, f"{layer}.self_attn.{name}.lora_B.weight": b}
        linear = {"self_attn.o_proj": block.attn.proj}
        linear |= {f"mlp.{theirs}": getattr(block.mlp, own) for theirs, own in MLP.items()}
        for name, module in linear.items():
            found[f"{layer}.{name}.lora_A.weight"] = module.lora_A.data
            found[f"{layer}.{name}.lora_B.weight"] = module.lora_B.data
    return found


def batch_of(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets of a window, padded right as LitGPT's collator does."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    learned = [torch.tensor(row["learned"], dtype=torch.bool) for row in rows]
    targets = [one.masked_fill(~mask, -100) for one, mask in zip(ids, learned, strict=True)]
    return pad_sequence(ids, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=-100)


def main() -> None:
    job, _, out = started()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-true" if job.half else "32-true")
    model = network(job)
    adapter = Path(job.folder) / "adapter"
    start = load_file(adapter / "adapter_model.safetensors")
    for name, value in updates(model).items():
        value.copy_(start[name])
    counts, meter = numbers_of(model, model.lm_head), Meter(job)
    model.max_seq_length = max(len(row["input_ids"]) for row in job.rows("rows"))
    model.register_forward_pre_hook(lambda module, args: setattr(meter, "positions", meter.positions + args[0].numel()))
    model = fabric.setup_module(model)
    kind = {"class_path": "torch.optim.AdamW", "init_args": {"lr": job.rate, "betas": (0.9, job.beta2)}}
    kind["init_args"] |= {"weight_decay": job.weight_decay, "fused": True}
    numbers = [value for value in model.parameters() if value.requires_grad]
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer(kind, numbers))
    rows = job.rows("rows")
    batches = [batch_of([rows[i] for i in window]) for window in job.windows]
    model.train()
    meter.begin(model)
    for ids, targets in batches:
        logits = model(ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        fabric.backward(chunked_cross_entropy(logits, targets[..., 1:]))
        fabric.clip_gradients(model, optimizer, max_norm=job.clip)
        optimizer.step()
        optimizer.zero_grad()
        meter.step_ended()
    tuned = out / "tuned"
    tuned.mkdir(exist_ok=True)
    shutil.copy(adapter / "adapter_config.json", tuned)
    save_file(
        {name: value.float().contiguous() for name, value in updates(model.module).items()},
        tuned / "adapter_model.safetensors",
    )
    versions = {"litgpt": version("litgpt"), "lightning": lightning.__version__}
    meter.finish(
        out,
        optimizer,
        timed(job, rows),
        numbers=counts,
        head_positions=meter.positions,
        recomputed=False,
        versions=versions,
    )


if __name__ == "__main__":
    main()
