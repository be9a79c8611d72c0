"""Keys of other trainers without a counterpart, with the reason or the alternative."""

from __future__ import annotations

from tunesmith.config.aliases import ACCUMULATION, OF_A_STEP

AUTO = "chosen automatically by a measurement"
ONE_DEVICE = "use `tunesmith tune --processes N` or torchrun; machine.shard divides the weights"
IN_PASSES = "the length of training is set in epochs: schedule.epochs"
PACKED = "rows are always packed without padding"
UNKNOWN = "no counterpart in Tunesmith"
UNNAMED = "set objective.reward to a run of `objective: reward` or to a Python function of one completion"
# A name that ends in * applies to all keys with this prefix.
LEFT_OUT: dict[str, str] = {
    "output_dir": "use `tunesmith tune RECIPE --out FOLDER`",
    "overwrite_output_dir": "use `tunesmith tune RECIPE --force`",
    "resume_from_checkpoint": "an unfinished run of the same recipe is resumed automatically",
    "do_train": "tune always trains",
    "do_eval": "base and tuned model are always scored",
    "template": "the model's own chat template is used",
    "chat_template*": "the model's own chat template is used",
    "special_tokens": "the special tokens of the tokenizer are used",
    "tokens": "adding tokens is not supported",
    "tokenizer*": "the tokenizer of the model is used",
    "model_type": "read from config.json of the model",
    "trust_remote_code": "code from model repositories is never executed",
    "bf16": AUTO,
    "fp16": AUTO,
    "tf32": AUTO,
    "pure_bf16": AUTO,
    "optim*": "AdamW is the only optimizer; schedule.optimizer: adamw-8bit keeps its states in 8 bits",
    "adam_*": "the default settings of AdamW are used",
    "lr_scheduler*": "cosine decay to a tenth of the peak is the only schedule",
    "cosine_*": "cosine decay to a tenth of the peak is the only schedule",
    "warmup_steps": "warm-up is a fraction of the steps: schedule.warmup",
    "max_steps": IN_PASSES,
    "steps": IN_PASSES,
    "sample_packing*": PACKED,
    "packing": PACKED,
    "eval_sample_packing": PACKED,
    "pad_to_sequence_len": PACKED,
    "group_by_length": "rows of similar length always share a batch",
    "train_on_inputs": "only answers are trained on",
    "train_on_prompt": "only answers are trained on",
    "mask_history": "every answer of a chat is trained on",
    "flash_attention": AUTO,
    "flash_attn": AUTO,
    "sdp_attention": AUTO,
    "xformers_attention": AUTO,
    "attn_implementation": AUTO,
    "gradient_checkpointing*": "switched on if memory runs out; schedule.recompute: true switches it on before that",
    "preprocessing_num_workers": "rows are read in one process",
    "dataloader_*": "rows are read in one process",
    "dataset_prepared_path": "prepared data is not cached",
    "dataset_dir": "used to find the data; not needed any more",
    "overwrite_cache": "prepared data is not cached",
    "shuffle_merged_datasets": "rows are always shuffled, by the seed",
    "logging_steps": "every step is logged in journal.jsonl",
    "plot_loss": "the report contains it",
    "report_to": "use track, with the same names, such as track: [tensorboard]",
    "wandb_*": "use track: [wandb]",
    "mlflow_*": "use track: [mlflow]",
    "evals_per_epoch": "schedule.eval_steps is in steps; the default is three to seven validations per run",
    "eval_strategy": "schedule.eval_steps is in steps; the default is three to seven validations per run",
    "saves_per_epoch": "schedule.save_steps is in steps; the default is ten checkpoints per run",
    "save_strategy": "schedule.save_steps is in steps; the default is ten checkpoints per run",
    "save_safetensors": "safetensors is always used",
    "save_total_limit": "the best and the last checkpoint are kept",
    "save_only_model": "a checkpoint contains everything needed to resume",
    "per_device_eval_batch_size": "evaluation batches are sized by tokens",
    "eval_batch_size": "evaluation batches are sized by tokens",
    "load_in_8bit": "8-bit quantization is not supported",
    "load_in_4bit": "use technique: qlora",
    "modules_to_save": "only the adapter and the head of the objective are trained and saved",
    "task_type": "determined by the objective",
    "deepspeed": ONE_DEVICE,
    "fsdp*": ONE_DEVICE,
    "ddp_*": ONE_DEVICE,
    "local_rank": ONE_DEVICE,
    ACCUMULATION: OF_A_STEP,
    "reward_funcs": "objective.reward is a Python function of one completion; its text is `completion.text`",
    "reward_model": "objective.reward is a run of `objective: reward`, a rule or a Python function",
    "early_stopping_patience": "use schedule.patience",
    "strict": "unknown keys are always rejected",
}


def why_left_out(name: str) -> str:
    """Return why a key of another trainer has no counterpart; empty if the key is unknown."""
    if name in LEFT_OUT:
        return LEFT_OUT[name]
    return next((why for key, why in LEFT_OUT.items() if key.endswith("*") and name.startswith(key[:-1])), "")
