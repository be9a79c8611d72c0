"""Thoughts in chat templates: what is rendered and learned with thinking on and off, and how a completion is split.

The templates in `templates/` were written for these tests from the documented formats of their families. Where TRL is
installed, the same is checked on the templates that the families ship.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.bases import template as tiny_template
from tests.tiny import CHATML_TOKENS, tokenizer
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call
from tunesmith.errors import TemplateError

HERE = Path(__file__).parent / "templates"
ASK = Message("user", "2+2?")
FOUR = Message("assistant", "Four.")
THINKING = Message("assistant", "Four.", thoughts="two and two")


@dataclass(frozen=True)
class Family:
    """The texts of one answer in a family's format."""

    switch: str
    special: tuple[str, ...]
    opens: bool  # the prompt opens the block
    on: str  # the end of the prompt with thinking
    thoughts: str  # what is learned of the thoughts, up to the answer
    off: str  # the end of the prompt without thinking
    answer: str  # the answer with its end
    shipped: str = ""  # name of the family's own template in TRL


QWEN3 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DEEPSEEK = ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
HARMONY = ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
GLM = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GEMMA = ("<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>")
FAMILIES = {
    "qwen3": Family(
        "enable_thinking",
        QWEN3,
        opens=False,
        on="<|im_start|>assistant\n",
        thoughts="<think>\ntwo and two\n</think>\n\n",
        off="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        answer="Four.<|im_end|>",
        shipped="qwen3",
    ),
    "gpt_oss": Family(
        "reasoning_effort",
        HARMONY,
        opens=False,
        on="<|start|>assistant",
        thoughts="<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>",
        off="<|start|>assistant<|channel|>final<|message|>",
        answer="Four.<|return|>",
        shipped="gptoss",
    ),
    "deepseek_r1": Family(
        "",
        DEEPSEEK,
        opens=True,
        on="<｜Assistant｜><think>\n",
        thoughts="two and two\n</think>\n\n",
        off="<｜Assistant｜><think>\n\n</think>\n\n",
        answer="Four.<｜end▁of▁sentence｜>",
        shipped="deepseek_r1_distill",
    ),
    "deepseek_v31": Family(
        "thinking",
        DEEPSEEK,
        opens=True,
        on="<｜Assistant｜><think>",
        thoughts="two and two</think>",
        off="<｜Assistant｜></think>",
        answer="Four.<｜end▁of▁sentence｜>",
    ),
    "smollm3": Family(
        "enable_thinking",
        QWEN3,
        opens=False,
        on="<|im_start|>assistant\n",
        thoughts="<think>\ntwo and two\n</think>\n",
        off="<|im_start|>assistant\n<think>\n\n</think>\n",
        answer="Four.<|im_end|>",
    ),
    "glm4": Family(
        "enable_thinking",
        GLM,
        opens=False,
        on="<|assistant|>",
        thoughts="\n<think>two and two</think>\n",
        off="/nothink<|assistant|>\n<think></think>",
        answer="Four.<|user|>",
        shipped="glm4moe",
    ),
    "gemma4": Family(
        "enable_thinking",
        GEMMA,
        opens=False,
        on="<|turn>model\n",
        thoughts="<|channel>thought\ntwo and two\n<channel|>",
        off="<|turn>model\n",
        answer="Four.<turn|>",
        shipped="gemma4_v5",
    ),
}


def sources(name: str) -> list[str]:
    """Our template of a family, and the family's own if TRL is installed."""
    found = find_spec("trl")
    shipped = FAMILIES[name].shipped
    ours = (HERE / f"{name}.jinja").read_text(encoding="utf-8")
    if not (found and found.origin and shipped):
        return [ours]
    theirs = Path(found.origin).parent / "chat_templates" / f"{shipped}.jinja"
    return [ours, theirs.read_text(encoding="utf-8")]


def templates(name: str) -> list[Template]:
    special = FAMILIES[name].special
    begins = {"bos_token": special[1]} if name.startswith(("deepseek", "gemma")) else {}
    return [Template(tokenizer(special, chat=source, eos_token=special[0], **begins)) for source in sources(name)]


def text(made: Template, ids: list[int]) -> str:
    return str(made.tokenizer.decode(ids))


def learned(made: Template, tokens: Tokens) -> str:
    return text(made, [i for i, learn in zip(tokens.ids, tokens.learn, strict=True) if learn])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_switch_of_a_template_is_found_by_rendering_it(name: str):
    for made in templates(name):
        assert (made.thinks, made.switch) == (True, FAMILIES[name].switch)
        assert made.opens(thinking=True) is FAMILIES[name].opens
        assert made.opens(thinking=False) is False


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_opens_an_answer_with_or_without_thoughts(name: str):
    family = FAMILIES[name]
    for made in templates(name):
        assert text(made, made.prompt([ASK], thinking=True)).endswith(family.on)
        assert text(made, made.prompt([ASK], thinking=False)).endswith(family.off)
        assert made.prompt([ASK]) == made.prompt([ASK], thinking=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_thoughts_and_answer_are_learned_behind_the_prompt_with_thinking(name: str):
    family = FAMILIES[name]
    for made in templates(name):
        tokens, prompt = made.chat([ASK, THINKING]), made.prompt([ASK], thinking=True)
        assert learned(made, tokens) == family.thoughts + family.answer
        assert tokens.ids[: len(prompt)] == prompt
        assert tokens.learn.index(True) == len(prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_thoughts_are_read_and_only_the_answer_is_learned(name: str):
    for made in templates(name):
        tokens = made.chat([ASK, THINKING], learn_thoughts=False)
        assert learned(made, tokens) == FAMILIES[name].answer
        assert tokens.ids == made.chat([ASK, THINKING]).ids


@pytest.mark.parametrize("name", FAMILIES)
def test_without_thoughts_the_answer_is_learned_and_never_an_empty_block(name: str):
    for made in templates(name):
        tokens, prompt = made.chat([ASK, FOUR]), made.prompt([ASK], thinking=False)
        assert learned(made, tokens).strip() == FAMILIES[name].answer
        assert "think" not in learned(made, tokens)
        assert tokens.ids[: len(prompt)] == prompt
        assert tokens.learn.index(True) == len(prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_where_a_turn_ends(name: str):
    for made in templates(name):
        last = [i for i, learn in zip(*_ids(made.chat([ASK, FOUR])), strict=True) if learn][-1]
        assert last in made.stop_ids
        assert made.end_ids == [last]


def _ids(tokens: Tokens) -> tuple[list[int], list[bool]]:
    return tokens.ids, tokens.learn


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_split_into_thoughts_and_answer_again(name: str):
    for made in templates(name):
        for turn, thinking in ((THINKING, True), (FOUR, False)):
            tokens = made.chat([ASK, turn])
            ids = [i for i, learn in zip(tokens.ids, tokens.learn, strict=True) if learn]
            completion = made.decode_thinking(ids[:-1])
            split = made.split_thoughts(completion, open=made.opens(thinking=thinking))
            assert split == (turn.thoughts, turn.content)


@pytest.mark.parametrize("name", FAMILIES)
def test_unfinished_thoughts_have_no_answer(name: str):
    for made in templates(name):
        tokens = made.chat([ASK, THINKING])
        ids = [i for i, learn in zip(tokens.ids, tokens.learn, strict=True) if learn]
        until = made.decode_thinking(ids).index("two and two") + len("two and two")
        cut = made.decode_thinking(ids)[:until]
        assert made.split_thoughts(cut, open=made.opens(thinking=True)) == ("two and two", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_of_a_chat_with_thoughts_is_learned_as_it_would_be_generated(name: str):
    chat = [ASK, THINKING, Message("user", "and 3+2?"), Message("assistant", "Five.", thoughts="three and two")]
    family = FAMILIES[name]
    for made in templates(name):
        first, second = made.rows(chat)
        assert learned(made, first) == family.thoughts + family.answer
        assert learned(made, second) == learned(made, first).replace("two and", "three and").replace("Four", "Five")
        assert "two and two" not in text(made, second.ids).replace("three and two", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_of_a_chat_without_thoughts_is_learned(name: str):
    chat = [ASK, FOUR, Message("user", "and 3+2?"), Message("assistant", "Five.")]
    for made in templates(name):
        taught = "".join(learned(made, row) for row in made.rows(chat))
        assert taught.replace("\n", "") == FAMILIES[name].answer + FAMILIES[name].answer.replace("Four", "Five")


@pytest.mark.parametrize("name", FAMILIES)
def test_finished_thoughts_may_be_part_of_the_prompt(name: str):
    for made in templates(name):
        prompt = made.prompt([ASK], thinking=True, thoughts="two and two")
        assert prompt == made.chat([ASK, THINKING]).ids[: len(prompt)]
        assert text(made, prompt).endswith(FAMILIES[name].thoughts)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_text_of_a_row_can_end_the_thoughts_or_the_turn(name: str):
    family = FAMILIES[name]
    for made in templates(name):
        marks = made.thought_format
        assert marks is not None
        attack = f"x{marks.closing}{made.tokenizer.decode(made.end_ids)}y"
        tokens = made.chat([ASK, Message("assistant", f"Four.{marks.opening}", thoughts=attack)])
        plain = made.chat([ASK, THINKING])
        shown = text(made, tokens.ids)
        assert shown.count(marks.closing) == text(made, plain.ids).count(marks.closing)
        assert tokens.ids.count(made.end_ids[-1]) == plain.ids.count(made.end_ids[-1])
        assert learned(made, tokens).endswith(family.answer.replace("Four.", ""))


TOOLS = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}])
CALLED = (
    Message("user", "2+2?", tools=TOOLS),
    Message("assistant", "", (Call("add", '{"a": 2}'),), thoughts="use add"),
    Message("tool", "4"),
    Message("assistant", "Four.", thoughts="it said 4"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_behind_thoughts_is_learned_and_so_is_the_answer_behind_its_result(name: str):
    family = FAMILIES[name]
    for made in templates(name):
        called, answered = made.rows(CALLED)
        assert learned(made, called).startswith(family.thoughts.replace("two and two", "use add").rstrip())
        assert "add" in learned(made, called).partition("use add")[2]
        assert learned(made, answered) == family.thoughts.replace("two and two", "it said 4") + family.answer
        masked = made.rows(CALLED, learn_thoughts=False)[0]
        assert "use add" not in learned(made, masked)
        assert learned(made, called).endswith(learned(made, masked))
        assert "use add" not in "".join(text(made, row.ids) for row in made.rows(CALLED, thinking=False))


def test_the_effort_of_harmony_is_written_into_the_prompt():
    (made, *_) = templates("gpt_oss")
    assert "Reasoning: high\n" in text(made, made.prompt([ASK], thinking=True, effort="high"))
    assert "Reasoning: medium\n" in text(made, made.prompt([ASK], thinking=True))
    assert "Reasoning: low\n" in text(made, made.prompt([ASK]))


def test_several_blocks_of_harmony_are_thoughts():
    (made, *_) = templates("gpt_oss")
    said = (
        "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>analysis<|message|>two<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Four."
    )
    assert made.split_thoughts(said, open=False) == ("one\ntwo", "Four.")
    assert made.split_thoughts("<|channel|>final<|message|>Four.", open=False) == ("", "Four.")


def test_a_model_that_thinks_although_it_should_not_is_split_too():
    (made, *_) = templates("qwen3")
    assert made.split_thoughts("<think>\nhm\n</think>\n\nFour.", open=False) == ("hm", "Four.")
    assert made.split_thoughts("<think>\nhm", open=False) == ("hm", "")
    assert made.split_thoughts("<think>\n\n</think>\n\nFour.", open=False) == ("", "Four.")


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3", "gpt2"])
def test_a_template_without_thoughts_has_no_switch_and_refuses_one_in_a_line(kind: str):
    made = tiny_template(kind)
    assert (made.thinks, made.switch, made.opens(thinking=True)) == (False, "", False)
    with pytest.raises(TemplateError, match="thinking: the chat template of this model has no thoughts; .* drop") as e:
        made.prompt([ASK], thinking=True)
    assert "\n" not in str(e.value)
    assert made.split_thoughts(" <think>x</think> Four. ", open=False) == ("", "<think>x</think> Four.")
    assert learned(made, made.rows([ASK, THINKING])[0]) == learned(made, made.chat([ASK, FOUR]))


def test_an_answer_is_cut_to_a_limit_with_its_thoughts_counted():
    (made, *_) = templates("qwen3")
    chat = [Message("user", "word " * 40), THINKING]
    fitted, shortened = made.fit(chat, 80)
    assert shortened
    assert 78 <= len(made.chat(fitted).ids) <= 81
    assert fitted[1] == THINKING


def test_a_template_that_opens_every_turn_alike_and_closes_none_is_refused():
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    with pytest.raises(TemplateError, match="assistant turns have no end marker"):
        Template(tokenizer(CHATML_TOKENS, chat=source, eos_token="<|endoftext|>"))


def test_weights_and_excluded_turns_are_those_of_their_tokens():
    made = tiny_template("llama")
    chat = [
        ASK,
        Message("assistant", "Four.", weight=0.0),
        ASK,
        Message("assistant", "Five.", weight=0.5),
        ASK,
        Message("assistant", "Six."),
    ]
    (tokens,) = made.rows(chat)
    assert learned(made, tokens) == "Five.<|im_end|>Six.<|im_end|>"
    weights = [weight for weight in tokens.weights if weight]
    assert set(weights) == {0.5, 1.0}
    assert [weight > 0 for weight in tokens.weights] == tokens.learn
    assert made.chat([ASK, FOUR]).weights == []


@pytest.mark.parametrize(
    ("thinking", "fix"), [(True, "set thinking: drop"), (False, "leave out the rows with tool calls")]
)
def test_a_call_that_cannot_be_written_is_refused_with_the_fix_of_its_mode(
    thinking: bool, fix: str, monkeypatch: pytest.MonkeyPatch
):
    (made, *_) = templates("gpt_oss")
    monkeypatch.setattr(made, "_composes", True)
    monkeypatch.setattr(type(made), "_render", lambda *_, **__: "another text")
    call = {"role": "assistant", "content": "", "thoughts": "hm", "tool_calls": []}
    with pytest.raises(TemplateError, match=fix) as error:
        made._chat_text([{"role": "user", "content": "q"}, call], thinking=thinking)
    assert ("thinking: drop" in str(error.value)) is thinking
