"""`python -m bench.peers.proven JOB OUT`: what a careful user runs instead of `tunesmith tune`, in one process.

TRL's SFTTrainer tunes a LoRA adapter; base and tuned model classify the held-out rows by the likelihood of the labels;
TF-IDF with logistic regression beside them, a paired bootstrap, and loss and accuracy on general texts and questions
before and after. JOB holds job.json, train, validation and test.jsonl, general.jsonl and probe.jsonl.

Settings are the fastest found on a CPU. Training: frozen weights in the job's precision, updates in fp32, loss on the
completion alone, rows of a batch alike in length, no recomputation, logging or checkpoints, one validation at the end.
Scoring: the update merged, batches sorted by length and bounded in tokens, no mask (padding stands right, where causal
attention does not see it), the language head only where it is read, and one pass of a prompt for all labels if each is
one token, as lm-evaluation-harness does. The base has one prompt, that of the tuned model; Tunesmith tries four.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

TOKENS = 4096  # of a scoring pass
WINDOW, WINDOWS = 256, 12  # tokens of a general text, and how many
RESAMPLES = 10_000
Asked = tuple[list[int], list[list[int]]]  # a prompt and its continuations


@torch.inference_mode()
def logprobs(model: Any, asked: Sequence[Asked]) -> list[list[float]]:
    """Summed log-probability of every continuation of each prompt, in nats."""
    single = all(len(option) == 1 for _, options in asked for option in options)
    rows = asked if single else [(prompt + o[:-1], [o]) for prompt, options in asked for o in options]
    found: list[list[float]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    while order:
        width = len(rows[order[0]][0])
        part, order = order[: TOKENS // width or 1], order[TOKENS // width or 1 :]
        ids = torch.zeros(len(part), width, dtype=torch.long)
        read = []  # line, position and next token, of every token that is scored
        for line, (prompt, options) in enumerate(rows[i] for i in part):
            ids[line, : len(prompt)] = torch.tensor(prompt)
            read += [(line, len(prompt) - len(o) + at, token) for o in options for at, token in enumerate(o)]
        lines, places, tokens = map(list, zip(*read, strict=True))
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[lines, places]
        scores = iter(model.lm_head(states).float().log_softmax(dim=-1)[range(len(tokens)), tokens].tolist())
        for i in part:
            found[i] = [sum(next(scores) for _ in option) for option in rows[i][1]]
    if single:
        return found
    flat = iter(found)
    return [[next(flat)[0] for _ in options] for _, options in asked]


class Verdict:
    """The rows of a job, and the seconds of every phase."""

    def __init__(self, folder: Path) -> None:
        self.job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        names = ("train", "validation", "test", "general", "probe")
        self.rows = {name: list(map(json.loads, (folder / f"{name}.jsonl").open(encoding="utf-8"))) for name in names}
        self.tokenizer = AutoTokenizer.from_pretrained(self.job["model"])
        self.labels: list[str] = self.job["labels"]
        self.gold = np.array([self.labels.index(row["label"]) for row in self.rows["test"]])
        self.phases: dict[str, float] = {}

    def timed(self, name: str, does: Any, *given: Any) -> Any:
        """What `does` returns; its seconds are noted."""
        began = time.perf_counter()
        found = does(*given)
        self.phases[name] = time.perf_counter() - began
        return found

    def chat(self, text: str) -> list[dict[str, str]]:
        """The question about a text."""
        return [{"role": "user", "content": f"{self.job['instruction']}\n\n{text}"}]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def classify(self, model: Any) -> np.ndarray:
        """Number of the likeliest label of each held-out row."""
        options = [self.ids(label) for label in self.labels]
        chats = [self.chat(row["text"]) for row in self.rows["test"]]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return np.array(logprobs(model, [(self.ids(text), options) for text in texts])).argmax(axis=1)

    def general(self, model: Any) -> dict[str, float]:
        """Loss on general texts in nats per token, and the share of general questions answered correctly."""
        ids = [i for row in self.rows["general"] for i in self.ids(row["text"])]
        windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW, WINDOW)][:WINDOWS]
        summed = sum(row[0] for row in logprobs(model, [(window[:1], [window[1:]]) for window in windows]))
        options = [[self.ids(f" {option}") for option in row["options"]] for row in self.rows["probe"]]
        asked = [(self.ids(row["question"]), own) for row, own in zip(self.rows["probe"], options, strict=True)]
        right = [
            int(np.argmax([score / len(o) for score, o in zip(scores, row["options"], strict=True)])) == row["answer"]
            for scores, row in zip(logprobs(model, asked), self.rows["probe"], strict=True)
        ]
        return {"loss": -summed / len(windows) / (WINDOW - 1), "questions": float(np.mean(right))}

    def trainer(self, base: Any, out: Path) -> SFTTrainer:
        """TRL's trainer at its best on a CPU."""

        def part(name: str) -> Dataset:
            chats = [(self.chat(row["text"]), row["label"]) for row in self.rows[name]]
            return Dataset.from_list(
                [{"prompt": asked, "completion": [{"role": "assistant", "content": said}]} for asked, said in chats]
            )

        settings = SFTConfig(
            output_dir=str(out / "trainer"),
            per_device_train_batch_size=self.job["batch_rows"],
            num_train_epochs=1,
            learning_rate=self.job["rate"],
            lr_scheduler_type="cosine",
            warmup_steps=3,
            completion_only_loss=True,
            train_sampling_strategy="group_by_length",
            gradient_checkpointing=False,
            seed=self.job["seed"],
            use_cpu=True,
            bf16=self.job["dtype"] == "bfloat16",
            dataloader_pin_memory=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        lora = LoraConfig(r=self.job["rank"], lora_alpha=2 * self.job["rank"], target_modules="all-linear")
        network = get_peft_model(base, lora)
        return SFTTrainer(network, settings, train_dataset=part("train"), eval_dataset=part("validation"))

    def tfidf(self) -> np.ndarray:
        """What TF-IDF with logistic regression says about the held-out rows."""
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
        search = GridSearchCV(model, {"logisticregression__C": [0.1, 1, 10, 100]}, cv=5)
        known = [*self.rows["train"], *self.rows["validation"]]
        search.fit([row["text"] for row in known], [self.labels.index(row["label"]) for row in known])
        return np.asarray(search.predict([row["text"] for row in self.rows["test"]]))

    def macro_f1(self, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Macro F1 of answers, for each line of weights [R, N] of the rows."""
        each = np.eye(len(self.labels))
        right, given, wanted = each[said] * each[self.gold], each[said], each[self.gold]
        return (2 * (weights @ right) / np.maximum(weights @ (given + wanted), 1)).mean(axis=1)

    def compared(self, answers: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores of all, and the paired bootstrap of the tuned model against each other one."""
        size = len(self.gold)
        once = np.ones((1, size))
        found: dict[str, Any] = {
            name: {"macro_f1": float(self.macro_f1(said, once)[0]), "accuracy": float((said == self.gold).mean())}
            for name, said in answers.items()
        }
        weights = np.random.default_rng(0).multinomial(size, [1 / size] * size, RESAMPLES).astype(np.float64)
        for name in set(answers) - {"tuned"}:
            gain = self.macro_f1(answers["tuned"], weights) - self.macro_f1(answers[name], weights)
            low, high = np.quantile(gain, (0.025, 0.975))
            p_value = min(1.0, 2 * min((gain <= 0).mean(), (gain >= 0).mean()))
            found[name] |= {"ci95": [float(low), float(high)], "p_value": float(p_value)}
        return found


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    verdict = Verdict(folder)
    torch.set_num_threads(verdict.job["threads"])
    torch.manual_seed(verdict.job["seed"])
    dtype = getattr(torch, verdict.job["dtype"])
    model = verdict.timed("loading", lambda: AutoModelForCausalLM.from_pretrained(verdict.job["model"], dtype=dtype))
    model.eval()
    answers = {"base": verdict.timed("base", verdict.classify, model)}
    general = {"base": verdict.timed("general base", verdict.general, model)}
    trainer = verdict.timed("making the trainer", verdict.trainer, model, out)
    verdict.timed("training", trainer.train)
    validation = verdict.timed("validation", trainer.evaluate)
    trainer.model.save_pretrained(out / "adapter")
    model = trainer.model.merge_and_unload().to(dtype).eval()
    answers["tuned"] = verdict.timed("tuned", verdict.classify, model)
    general["tuned"] = verdict.timed("general tuned", verdict.general, model)
    answers["tfidf"] = verdict.timed("tfidf", verdict.tfidf)
    scores = verdict.timed("bootstrap", verdict.compared, answers)
    found = {"phases": verdict.phases, "scores": scores, "general": general, "validation": validation["eval_loss"]}
    (out / "result.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
