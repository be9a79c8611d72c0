"""Code that uses an export without Tunesmith. The export's README shows it, and the comparison executes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.text_part import part_of

README = "README.md"
SETTINGS = "tunesmith"  # key of config.json

CLASSIFY_TEXT = """\
from transformers import pipeline

classify = pipeline("text-classification", model="{folder}", top_k=None, truncation=True)"""

CLASSIFY_CHAT = """\
from transformers import AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("{folder}")
classifier = pipeline("text-classification", model="{folder}", tokenizer=tokenizer, top_k=None)
instruction = classifier.model.config.tunesmith["before_text"]


def classify(texts):
    chats = [[{{"role": "user", "content": instruction + text}}] for text in texts]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    return classifier(prompts, add_special_tokens=False)"""

CLASSIFY_WORDS = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}").eval()
settings = model.config.tunesmith
labels, options = list(settings["label_tokens"]), list(settings["label_tokens"].values())


@torch.inference_mode()
def probabilities(text):
    chat = [{{"role": "user", "content": settings["before_text"] + text}}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    scores = []
    for option in options:  # the log-probability of each label after the prompt
        logits = model(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1]
        scores.append(logits.float().log_softmax(dim=1)[range(len(option)), option].sum())
    calibrated = torch.stack(scores).double() / settings["temperature"]
    return calibrated.softmax(dim=0).tolist()


def classify(texts):
    rows = [sorted(zip(labels, probabilities(text)), key=lambda pair: -pair[1]) for text in texts]
    return [[{{"label": label, "score": score}} for label, score in row] for row in rows]"""

REWARD_TEXT = """\
from transformers import pipeline

scorer = pipeline("text-classification", model="{folder}", truncation=True)
separator = scorer.tokenizer.sep_token


def reward(pairs):
    return [row["score"] for row in scorer([f"{{prompt}}{{separator}}{{answer}}" for prompt, answer in pairs])]"""

REWARD_CHAT = """\
from transformers import AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("{folder}")
scorer = pipeline("text-classification", model="{folder}", tokenizer=tokenizer)


def reward(pairs):
    chats = [[{{"role": "user", "content": p}}, {{"role": "assistant", "content": a}}] for p, a in pairs]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return [row["score"] for row in scorer(texts, add_special_tokens=False)]"""

SCORE_PAIRS = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}").eval()


def score(pairs):
    queries, passages = map(list, zip(*pairs))
    inputs = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[:, 0].sigmoid().tolist()"""

PREDICT_TEXT = """\
from transformers import pipeline

predictor = pipeline("text-classification", model="{folder}", truncation=True)


def predict(texts):
    return [row["score"] for row in predictor(texts)]"""

PREDICT_CHAT = """\
from transformers import AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("{folder}")
predictor = pipeline("text-classification", model="{folder}", tokenizer=tokenizer)
instruction = predictor.model.config.tunesmith["before_text"]


def predict(texts):
    chats = [[{{"role": "user", "content": instruction + text}}] for text in texts]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    return [row["score"] for row in predictor(prompts, add_special_tokens=False)]"""

FILL = """\
from transformers import pipeline

fill = pipeline("fill-mask", model="{folder}", tokenizer_kwargs={{"truncation": True}})"""

# The strategy is `aggregation` of the recipe.
TAG_TEXT = """\
from transformers import pipeline

tagger = pipeline("token-classification", model="{folder}")
strategy = tagger.model.config.tunesmith["aggregation"]


def tag(texts):
    return tagger(texts, aggregation_strategy=strategy)"""

# For a family whose class cannot express the head. The parts in angle brackets depend on the model.
OWN_HEAD = """\
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}").eval()
settings = model.config.tunesmith
head = load_file("{folder}/head.safetensors")


@torch.inference_mode()
def logits(ids):
    states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
    return (head["weight"] @ states<POOLED> + head["bias"]).double()
"""
CLASSIFY_IDS = """

def classify(texts):
    answers = []
    for text in texts:
        <IDS>
        scores = <SCORES>.tolist()
        rows = [{{"label": label, "score": score}} for label, score in zip(settings["labels"], scores)]
        answers.append(sorted(rows, key=lambda row: -row["score"]))
    return answers"""
REWARD_IDS = """

def reward(pairs):
    answers = []
    for prompt, answer in pairs:
        <IDS>
        answers.append(float(logits(ids)[0]))
    return answers"""
PREDICT_IDS = """

def predict(texts):
    answers = []
    for text in texts:
        <IDS>
        answers.append(float(logits(ids)[0]) * settings["scale"] + settings["mean"])
    return answers"""
TEXT_IDS = 'ids = tokenizer(text, truncation=True)["input_ids"]'
CHAT_IDS = """chat = [{{"role": "user", "content": settings["before_text"] + text}}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]"""
PAIR_IDS = 'ids = tokenizer(f"{{prompt}}{{tokenizer.sep_token}}{{answer}}", truncation=True)["input_ids"]'
PAIR_CHAT_IDS = """chat = [{{"role": "user", "content": prompt}}, {{"role": "assistant", "content": answer}}]
        ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]"""


def _own_head(kind: str) -> str:
    """Return the code for a head next to the weights, for one of the forms below."""
    task, read = kind.split(maxsplit=1)
    body = {"classify": CLASSIFY_IDS, "predict": PREDICT_IDS, "reward": REWARD_IDS}[task]
    ids = {
        "predict text": TEXT_IDS, "predict chat": CHAT_IDS,
        "classify text": TEXT_IDS, "classify chat": CHAT_IDS, "reward text": PAIR_IDS, "reward chat": PAIR_CHAT_IDS,
    }[f"{task} {read.split()[0]}"]  # fmt: skip
    scores = "logits(ids).sigmoid()" if "several" in kind else '(logits(ids) / settings["temperature"]).softmax(dim=0)'
    code = OWN_HEAD.replace("<POOLED>", "[-1]" if "chat" in read else ".mean(dim=0)")
    return code + body.replace("<IDS>", ids).replace("<SCORES>", scores)


CODE = {
    "classify text": (CLASSIFY_TEXT, 'print(classify(["your text"]))'),
    "classify chat": (CLASSIFY_CHAT, 'print(classify(["your text"]))'),
    "classify words": (CLASSIFY_WORDS, 'print(classify(["your text"]))'),
    "predict text": (PREDICT_TEXT, 'print(predict(["your text"]))'),
    "predict chat": (PREDICT_CHAT, 'print(predict(["your text"]))'),
    **{
        f"predict {read} own head": (_own_head(f"predict {read} own head"), 'print(predict(["your text"]))')
        for read in ("text", "chat")
    },
    "reward text": (REWARD_TEXT, 'print(reward([("your prompt", "an answer")]))'),
    "reward chat": (REWARD_CHAT, 'print(reward([("your prompt", "an answer")]))'),
    **{
        f"classify {read} own head{several}": (
            _own_head(f"classify {read} own head{several}"),
            'print(classify(["your text"]))',
        )
        for read in ("text", "chat")
        for several in ("", " several")
    },
    **{
        f"reward {read} own head": (
            _own_head(f"reward {read} own head"),
            'print(reward([("your prompt", "an answer")]))',
        )
        for read in ("text", "chat")
    },
    "score pairs": (SCORE_PAIRS, 'print(score([("your query", "a passage"), ("your query", "another one")]))'),
    "tag text": (TAG_TEXT, 'print(tag(["your text"]))'),
    "fill": (FILL, 'print(fill(f"your {fill.tokenizer.mask_token} text"))'),
}
PIPELINE_TAGS = {
    "classify words": "text-generation",
    "fill": "fill-mask",
    "tag text": "token-classification",
    "score pairs": "text-ranking",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Use of an export: one of `CODE`, and the settings that the code reads from config.json."""

    form: str
    settings: Mapping[str, Any]

    @property
    def pipeline_tag(self) -> str:
        """Return the task of the Hub; `other` keeps it from offering a pipeline that would be wrong."""
        if "own head" in self.form:
            return "other"
        return PIPELINE_TAGS.get(self.form, "text-classification")

    def code(self, folder: str) -> str:
        """Return the code without its example call, for the folder of the export."""
        code = CODE[self.form][0].format(folder=folder)
        return code.replace("AutoModelForCausalLM", self.settings.get("auto_class", "AutoModelForCausalLM"))

    def example(self, folder: str) -> str:
        """Return the code with an example call."""
        return f"{self.code(folder)}\n\n{CODE[self.form][1]}"

    def function(self, folder: Path) -> Callable[[Any], Any]:
        """Execute the code and return the function that it defines: classify, predict, tag, reward or fill."""
        namespace: dict[str, Any] = {}
        exec(compile(self.code(folder.as_posix()), README, "exec"), namespace)
        function: Callable[[Any], Any] = namespace[self.form.split()[0]]
        return function


def usage_of(model: LocalModel) -> Usage | None:
    """Return how the merged export of a model is used; None if it only generates text, or has several tasks."""
    objective = model.objective
    chats = model.template.chats
    settings: dict[str, Any] = {"objective": objective.kind, "max_tokens": model.limit}
    if part_of(model.policy.network) is not None:
        settings["auto_class"] = "AutoModelForMultimodalLM"
    if model.threshold is not None:
        settings["confidence_threshold"] = model.threshold
    if objective.export_form:
        settings |= objective.export_settings(chats=chats)
        return Usage(objective.export_form.format(read="chat" if chats else "text"), settings)
    if objective.produces == "likelihood" and not chats:
        return Usage("fill", settings)
    if objective.produces != "labels" or len(objective.task_objectives) > 1:
        return None
    if not chats:
        return Usage("classify text", settings)
    settings["before_text"] = objective.user_message("").content
    if objective.has_label_head:
        return Usage("classify chat", settings)
    settings |= {"label_tokens": model.label_tokens(), "temperature": model.temperature}
    return Usage("classify words", settings)


def with_own_head(usage: Usage, model: LocalModel) -> Usage | None:
    """Return how an export is used whose head is next to the weights; None if it is not a linear layer."""
    if usage.form in ("fill", "tag text"):
        return None
    several = " several" if model.objective.label_mode == "multi" else ""
    labels = list(model.objective.known_labels)
    settings = {**usage.settings, "labels": labels, "temperature": model.temperature}
    return Usage(f"{usage.form} own head{several}", settings)


def read_usage(folder: Path) -> Usage | None:
    """Return how an export is used, from its config.json; None for an export without such code."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(SETTINGS)
    return Usage(str(settings["form"]), settings) if settings else None


def readme(usage: Usage, *, name: str, class_name: str, multi: bool) -> str:
    """Return the README of an export: front matter of the Hub, code and limits; `multi`: several labels per text."""
    limit = usage.settings["max_tokens"]
    notes = [f"`{class_name}` of transformers opens this folder."]
    if "own head" in usage.form:
        notes.append(
            "transformers has no class for this family that can express the head, so the head is stored in "
            "`head.safetensors` and applied by the code. A pipeline for text classification gives wrong answers."
        )
    if usage.form == "score pairs":
        notes.append("sentence-transformers opens it too, as a `CrossEncoder` with the same scores.")
    if usage.form == "tag text":
        notes.append(f'Spans are those of `aggregation_strategy="{usage.settings["aggregation"]}"`.')
    if usage.form.startswith("classify") and not multi:
        in_code = usage.form == "classify words" or "own head" in usage.form
        where = "applied in the code" if in_code else "folded into the last layer"
        notes.append(f"The probabilities are calibrated; the temperature is {where}.")
    if multi:
        notes.append("Each label has its own probability. A label applies if its probability is at least 0.5.")
    if "confidence_threshold" in usage.settings:
        notes.append(f"Validation rows suggest to accept a label above {usage.settings['confidence_threshold']:.3f}.")
    if usage.form in ("reward text", "reward chat"):
        notes.append("The score is the reward; no sigmoid is applied (`problem_type` is `regression`).")
    if usage.form in ("predict text", "predict chat"):
        notes.append("The score is the number, in the unit of the training rows (`problem_type` is `regression`).")
    if usage.form in ("classify text", "predict text", "reward text", "classify chat", "predict chat", "reward chat"):
        notes.append(
            "The classifier includes layers that pool the states and compute the logits. "
            "To train further, start from the base model, not from this folder."
        )
    notes.append(f"The model was tuned with at most {limit} tokens. {_longer_texts(usage.form)}")
    lines = "\n".join(f"- {note}" for note in notes)
    front = f"---\nlibrary_name: transformers\npipeline_tag: {usage.pipeline_tag}\ntags: [tunesmith]\n---\n"
    code = f"```python\n{usage.example('.')}\n```"
    return f"{front}\n# {name}\n\nRun this in the folder of this file:\n\n{code}\n\n{lines}\n"


def _longer_texts(form: str) -> str:
    """Return what the code of a form does with texts that are longer than those in training."""
    if form == "tag text":
        return (
            "This code truncates longer texts there, and marks nothing after that. Tunesmith reads them whole, in "
            "overlapping windows; divide them before you use this code."
        )
    if form == "score pairs":
        return "Of a longer pair, the longer text is truncated, as in Tunesmith."
    if form.startswith(("classify text", "predict text", "fill")):
        return "Longer texts are truncated there, as in Tunesmith."
    return "Tunesmith shortens longer prompts; this code does not, so shorten them first."
