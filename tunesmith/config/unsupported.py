"""Keys of other trainers without a counterpart here, and why none is needed."""

from __future__ import annotations

from tunesmith.config.aliases import ACCUMULATION, OF_A_STEP

AUTO = "measured and chosen at the start"
ONE_DEVICE = "one process on one device is all there is"
IN_PASSES = "the length is counted in passes: schedule.epochs"
PACKED = "the rows of a pass always run one behind the other, and nothing is padded"
UNKNOWN = "no counterpart here"
UNNAMED = "to be named as objective.reward: a run of `objective: reward`, or a Python function of one attempt"
# Keys without a counterpart, and why none is needed; a name that ends in * stands for all that begin so.
LEFT_OUT: dict[str, str] = {
    "output_dir": "give the folder at the start: tunesmith tune RECIPE --out FOLDER",
    "overwrite_output_dir": "tunesmith tune --force",
    "resume_from_checkpoint": "an unfinished run of the same recipe is gone on with by itself",
    "do_train": "tune always trains",
    "do_eval": "base and tuned model are always scored",
    "template": "the model's own chat template is used",
    "chat_template*": "the model's own chat template is used",
    "special_tokens": "they come with the model's tokenizer",
    "tokens": "added tokens are not learned here",
    "tokenizer*": "the tokenizer comes with the model",
    "model_type": "told by the model's config.json",
    "trust_remote_code": "code from a model's repository is never run",
    "bf16": AUTO,
    "fp16": AUTO,
    "tf32": AUTO,
    "pure_bf16": AUTO,
    "optim*": "AdamW is the only optimizer",
    "adam_*": "AdamW's usual settings are used",
    "lr_scheduler*": "a cosine to a tenth of the peak is the only schedule",
    "cosine_*": "a cosine to a tenth of the peak is the only schedule",
    "warmup_steps": "the warm-up is a share of the steps: schedule.warmup",
    "max_steps": IN_PASSES,
    "steps": IN_PASSES,
    "sample_packing*": PACKED,
    "packing": PACKED,
    "eval_sample_packing": PACKED,
    "pad_to_sequence_len": PACKED,
    "group_by_length": "rows of like length always share a batch",
    "train_on_inputs": "only answers are learned",
    "train_on_prompt": "only answers are learned",
    "mask_history": "every answer of a chat is learned",
    "flash_attention": AUTO,
    "flash_attn": AUTO,
    "sdp_attention": AUTO,
    "xformers_attention": AUTO,
    "attn_implementation": AUTO,
    "gradient_checkpointing*": "a pass that does not fit is halved by itself; its size is schedule.batch_tokens",
    "preprocessing_num_workers": "rows are read in one process",
    "dataloader_*": "rows are read in one process",
    "dataset_prepared_path": "nothing is kept between reading and training",
    "dataset_dir": "where it was looked up",
    "overwrite_cache": "nothing is kept between reading and training",
    "shuffle_merged_datasets": "rows are always shuffled by the seed",
    "logging_steps": "every step stands in the journal",
    "plot_loss": "the report shows it",
    "report_to": "name them under track: tensorboard, wandb, mlflow, trackio",
    "wandb_*": "name it under track: [wandb]",
    "mlflow_*": "name it under track: [mlflow]",
    "evals_per_epoch": "schedule.eval_steps is counted in steps, by default six a run",
    "eval_strategy": "schedule.eval_steps is counted in steps, by default six a run",
    "saves_per_epoch": "schedule.save_steps is counted in steps, by default ten a run",
    "save_strategy": "schedule.save_steps is counted in steps, by default ten a run",
    "save_safetensors": "always",
    "save_total_limit": "the best and the last checkpoint are kept",
    "save_only_model": "a checkpoint holds all that going on needs",
    "per_device_eval_batch_size": "sized by tokens",
    "eval_batch_size": "sized by tokens",
    "load_in_8bit": "weights are read as they are",
    "load_in_4bit": "technique: qlora keeps the base in 4 bits",
    "modules_to_save": "an adapter's own numbers and the objective's head are all that is learned and saved",
    "task_type": "told by the objective",
    "deepspeed": ONE_DEVICE,
    "fsdp*": ONE_DEVICE,
    "ddp_*": ONE_DEVICE,
    "local_rank": ONE_DEVICE,
    ACCUMULATION: OF_A_STEP,
    "reward_funcs": "objective.reward takes a Python function of one attempt; TRL's completion is `attempt.text`",
    "reward_model": "objective.reward takes a run of `objective: reward`, a rule or a function of yours",
    "early_stopping_patience": "use schedule.patience",
    "strict": "unknown keys are always refused",
}


def why_left_out(name: str) -> str:
    """Why a key of another trainer is not needed here; empty for a key that is of none."""
    if name in LEFT_OUT:
        return LEFT_OUT[name]
    return next((why for key, why in LEFT_OUT.items() if key.endswith("*") and name.startswith(key[:-1])), "")
