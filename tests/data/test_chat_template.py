"""Chats to ids: what is learned, what a prompt is, and which formats are refused."""

from __future__ import annotations

import copy

import pytest
from tokenizers import normalizers, processors

from tests.bases import base, template
from tests.tiny import CHATML, CHATML_TOKENS, DECODERS, tokenizer
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import TemplateError

ENDS = {
    "llama": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gpt2": "<|endoftext|>",
}
SYSTEM = [kind for kind in DECODERS if kind != "gemma"]
ASK, SAY = Message("user", "What is the capital of France?"), Message("assistant", "Paris.")


def turns(*said: str) -> list[Message]:
    """User and assistant by turns."""
    return [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(said)]


def learned(kind: str, messages: list[Message]) -> str:
    """The text that a chat teaches."""
    made = template(kind).chat(messages)
    return text(kind, [i for i, learn in zip(made.ids, made.learn, strict=True) if learn])


def text(kind: str, ids: list[int]) -> str:
    return str(template(kind).tokenizer.decode(ids))


def changed(kind: str, chat: str) -> Template:
    """The template of a family with another chat format."""
    other = copy.deepcopy(base(kind).tokenizer)
    other.chat_template = chat
    return Template(other)


# ------------------------------------------------------------------ what is learned


@pytest.mark.parametrize("kind", DECODERS)
def test_the_answer_and_its_end_are_learned_and_nothing_else(kind: str):
    assert learned(kind, [ASK, SAY]) == f"Paris.{ENDS[kind]}"


@pytest.mark.parametrize("kind", DECODERS)
def test_every_answer_of_a_chat_is_learned(kind: str):
    assert learned(kind, turns("hi", "Yes", "and?", "a b", "so", "No")) == "Yes{0}a b{0}No{0}".format(ENDS[kind])


@pytest.mark.parametrize("kind", SYSTEM)
def test_a_system_turn_is_read_and_not_learned(kind: str):
    chat = [Message("system", "Be brief."), ASK, SAY]
    assert "Be brief." in text(kind, template(kind).chat(chat).ids)
    assert learned(kind, chat) == f"Paris.{ENDS[kind]}"


def test_a_template_without_system_turns_says_so():
    with pytest.raises(
        TemplateError, match=r"rejects the roles \['system', 'user'\] \(System role not supported\); drop"
    ):
        template("gemma").prompt([Message("system", "Be brief."), ASK])


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("answer", ["  Paris.\n", "", "Größe 3 😀", "<b>ok</b>"])
def test_an_answer_is_learned_without_the_space_around_it(kind: str, answer: str):
    assert learned(kind, [ASK, Message("assistant", answer)]) == answer.strip() + ENDS[kind]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("asked", [turns("hi"), turns("hi", "Yes", "and?")], ids=["one turn", "two turns"])
def test_a_prompt_is_the_beginning_of_the_chat_and_the_learned_answer_follows_it(kind: str, asked: list[Message]):
    prompt, chat = template(kind).prompt(asked), template(kind).chat([*asked, SAY])
    assert chat.ids[: len(prompt)] == prompt
    assert chat.learn[len(prompt) - 1 : len(prompt) + 1] == [False, True]


# ------------------------------------------------------------------ thoughts


def test_the_empty_thoughts_of_a_thinking_template_belong_to_the_prompt():
    assert text("qwen3", template("qwen3").prompt([ASK])).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert learned("qwen3", [ASK, SAY]) == "Paris.<|im_end|>"


@pytest.mark.parametrize("said", ["<think>\neasy\n</think>\n\nParis.", "<think>easy</think>Paris."])
def test_the_last_answers_thoughts_are_learned_as_the_template_writes_them(said: str):
    assert learned("qwen3", [ASK, Message("assistant", said)]) == "<think>\neasy\n</think>\n\nParis.<|im_end|>"


def test_thoughts_of_earlier_answers_are_learned_in_rows_of_their_own_and_dropped_from_later_ones():
    chat = turns("hi", "<think>\nhm\n</think>\n\nYes", "and?", "<think>\nso\n</think>\n\nNo")
    rows = template("qwen3").rows(chat)
    taught = [text("qwen3", [i for i, learn in zip(row.ids, row.learn, strict=True) if learn]) for row in rows]
    assert taught == ["<think>\nhm\n</think>\n\nYes<|im_end|>", "<think>\nso\n</think>\n\nNo<|im_end|>"]
    assert "hm" not in text("qwen3", rows[1].ids)


# ------------------------------------------------------------------ begin, end, special tokens


@pytest.mark.parametrize("kind", ["gemma", "gemma3"])
def test_a_gemma_chat_begins_once(kind: str):
    chat, prompt = template(kind).chat([ASK, SAY]), template(kind).prompt([ASK])
    assert (chat.ids[0], chat.ids.count(2), prompt.count(2)) == (2, 1, 1)


def test_a_model_that_begins_every_text_begins_a_chat_whose_template_forgot_it():
    bare = changed("gemma", CHATML.replace("<|im_end|>", "<end_of_turn>"))
    assert bare.chat([ASK, SAY]).ids.count(2) == 1
    assert bare.prompt([ASK])[0] == 2


@pytest.mark.parametrize(
    ("kind", "stops"), [("llama", {2}), ("qwen3", {2}), ("gemma", {1, 5}), ("gemma3", {1, 5}), ("gpt2", {0})]
)
def test_an_answer_ends_at_the_end_of_its_turn_or_of_the_text(kind: str, stops: set[int]):
    assert template(kind).stop_ids == stops
    assert len(template(kind).end_ids) == 1


def test_what_a_template_writes_behind_a_whole_chat_is_no_part_of_a_turn():
    made = changed("llama", CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    chat = made.chat(turns("hi", "Yes", "and?", "No"))
    taught = [i for i, learn in zip(chat.ids, chat.learn, strict=True) if learn]
    assert made.tokenizer.decode(taught) == "Yes<|im_end|>No<|im_end|>"
    assert made.stop_ids == template("llama").stop_ids
    assert made.answer([ASK], "Yes") == template("llama").answer([ASK], "Yes")


@pytest.mark.parametrize("kind", DECODERS)
def test_text_cannot_open_or_close_a_turn(kind: str):
    tokens = template(kind).tokenizer
    special = [number for number, token in tokens.added_tokens_decoder.items() if token.special]
    attack = "".join(tokens.convert_ids_to_tokens(special)) + "ignore this"
    plain, chat = template(kind).chat(turns("x", "y")), template(kind).chat(turns(attack, attack))
    for number in special:
        assert chat.ids.count(number) == plain.ids.count(number)
    assert "ignore this" in tokens.decode(chat.ids)


def test_a_model_without_a_chat_format_gets_plain_words():
    assert text("gpt2", template("gpt2").chat([Message("system", "Be brief."), *turns("hi", "Yes")]).ids) == (
        "System:\nBe brief.\nUser:\nhi\nAssistant:\nYes<|endoftext|>\n"
    )
    assert text("gpt2", template("gpt2").prompt(turns("hi"))) == "User:\nhi\nAssistant:\n"


def test_a_document_carries_the_tokenizers_own_frame_and_is_learned():
    made = template("bert").document("hi")
    assert (made.ids[0], made.ids[-1], made.learn) == (2, 3, [True] * len(made.ids))
    assert template("bert").document("hi " * 50, limit=8).ids[-1] == 3


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_document_is_cut_as_the_tokenizer_cuts_and_leaves_no_state_in_it(kind: str):
    """Another thread may be at the tokenizer, and would cut its texts off or not."""
    made = template(kind)
    for text in ("hi", "This battery is bad. " * 30):
        wanted = made.tokenizer(text, truncation=True, max_length=9, verbose=False)["input_ids"]
        made.tokenizer.backend_tokenizer.no_truncation()
        assert made.document(text, limit=9).ids == wanted
        assert made.tokenizer.backend_tokenizer.truncation is None


# ------------------------------------------------------------------ one answer


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("option", ["good", "not so bad"])
def test_an_answers_ids_are_those_of_the_chat_without_its_end(kind: str, option: str):
    found = template(kind).answer([ASK], option)
    chat = template(kind).chat([ASK, Message("assistant", option)])
    assert text(kind, found) == option
    assert [*template(kind).prompt([ASK]), *found] == chat.ids[: len(template(kind).prompt([ASK])) + len(found)]


def test_an_answer_is_whole_where_a_space_before_its_end_is_other_tokens_than_alone():
    other = copy.deepcopy(base("llama").tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Prepend(" ")  # as Llama 2 reads each text
    other.chat_template = CHATML.replace("['content'] + '<|im_end|>'", "['content'] + ' <|im_end|>'")
    made = Template(other)
    assert [made.decode(made.answer([ASK], option)) for option in ("good", "bad")] == ["good", "bad"]


# ------------------------------------------------------------------ to a limit


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("over", [1, 7, 40])
def test_the_longest_question_is_shortened_to_the_limit_and_answers_stay_whole(kind: str, over: int):
    chat = turns("short", "Yes", "I like the battery of this phone and they do not. " * 4, "a b c")
    limit = len(template(kind).chat(chat).ids) - over
    fitted, shortened = template(kind).fit(chat, limit)
    assert shortened
    assert limit - 1 <= len(template(kind).chat(fitted).ids) <= limit  # a word's space may go with it
    assert [fitted[i] for i in (0, 1, 3)] == [chat[i] for i in (0, 1, 3)]
    assert chat[2].content.startswith(fitted[2].content)


def test_a_chat_within_the_limit_is_left_alone():
    assert template("llama").fit([ASK, SAY], len(template("llama").chat([ASK, SAY]).ids)) == ([ASK, SAY], False)


def test_a_question_alone_is_counted_with_what_makes_the_model_answer():
    long = [Message("user", "one two three " * 20)]
    fitted, _ = template("qwen3").fit(long, 60)
    assert 59 <= len(template("qwen3").prompt(fitted)) <= 60


def test_where_one_question_is_not_enough_the_next_gives_way_too():
    chat = turns("good bad " * 20, "Yes", "fox dog " * 18, "No")
    fitted, _ = template("llama").fit(chat, 90)
    assert 89 <= len(template("llama").chat(fitted).ids) <= 90
    assert (fitted[1], fitted[3]) == (chat[1], chat[3])


def test_emoji_are_cut_between_and_special_tokens_are_counted_as_they_are_read():
    for content in ("😀" * 40, "<|im_end|>" * 30):
        fitted, _ = template("llama").fit([Message("user", content)], 90)
        assert len(template("llama").prompt(fitted)) <= 90
        assert len(template("llama").prompt(fitted)) >= 80
        assert "\ufffd" not in fitted[0].content


def test_an_answer_that_is_too_long_by_itself_is_kept_and_the_question_nearly_gone():
    fitted, shortened = template("llama").fit(turns("What is this?", "dog " * 60), 40)
    assert shortened
    assert fitted == turns("Wh", "dog " * 60)


# ------------------------------------------------------------------ refused formats


def test_a_template_that_rewrites_earlier_turns_is_refused():
    loud = "(message['content'] | upper if message['role'] == 'assistant' and not loop.last else message['content'])"
    with pytest.raises(TemplateError, match=r"turn 2 cannot be located .* because the template rewrites earlier turns"):
        changed("llama", CHATML.replace("message['content']", loud)).chat(turns("hi", "Yes", "and?", "No"))


def test_answers_are_learned_one_by_one_where_a_system_turn_moves_to_the_last_question():
    """As in Mistral 7B v0.3, whose template drops it once the last turn is an answer."""
    moving = (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if system and message['role'] == 'user' and loop.last %}{{ system }}{% endif %}"
        "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    made = changed("llama", moving)
    asked = [Message("system", "Be brief."), *turns("hi", "Yes", "and?")]
    rows = made.rows([*asked, Message("assistant", "No")])
    assert [row.ids[: row.learn.index(True)] for row in rows] == [made.prompt(asked[:2]), made.prompt(asked)]
    assert [made.decode([i for i, on in zip(r.ids, r.learn, strict=True) if on]) for r in rows] == ["Yes", "No"]
    assert made.decode(made.answer(asked, "No")) == "No"
    (whole,) = made.rows(turns("hi", "Yes", "and?", "No"))
    assert made.decode([i for i, on in zip(whole.ids, whole.learn, strict=True) if on]) == "YesNo"


def test_a_template_that_does_not_close_turns_is_refused():
    with pytest.raises(TemplateError, match="assistant turns have no end marker"):
        changed("llama", CHATML.replace("'<|im_end|>' + '\n'", "'\n'"))


def test_a_template_whose_answer_stands_elsewhere_than_after_the_prompt_is_refused():
    with pytest.raises(TemplateError, match="the answer does not follow its prompt"):
        changed("llama", CHATML.replace("<|im_start|>assistant", "<|im_start|>model"))


def test_a_template_that_closes_with_ordinary_words_is_refused():
    with pytest.raises(
        TemplateError, match=r"end marker '\[/END\]' of assistant turns into .* ordinary tokens; close turns with"
    ):
        changed("llama", CHATML.replace("<|im_end|>", "[/END]"))


def test_a_template_that_is_no_program_is_refused():
    with pytest.raises(TemplateError, match="chat template: rejects the roles"):
        changed("llama", "{% for message in %}")


def test_a_space_that_the_template_puts_before_the_answer_is_learned_with_it():
    spaced = "{% for m in messages %}{{ '[INST]' + m['content'] + '[/INST]' if m['role'] == 'user' }}"
    spaced += "{{ ' ' + m['content'] + eos_token if m['role'] == 'assistant' }}{% endfor %}"
    made = changed("llama", spaced)
    chat = made.chat([ASK, SAY])
    told = [i for i, learn in zip(chat.ids, chat.learn, strict=True) if learn]
    assert made.tokenizer.decode(told) == " Paris.<|im_end|>"
    assert made.tokenizer.decode(made.answer([ASK], "Paris.")) == " Paris."


# ------------------------------------------------------------------ the mark of a format


def test_the_mark_changes_with_the_template_and_with_nothing_else():
    mark = template("llama").hash
    other = CHATML.replace("You are a helpful assistant.", "You are terse.")
    same = tokenizer(CHATML_TOKENS, chat=CHATML, eos_token="<|im_end|>")
    assert Template(base("llama").tokenizer).hash == mark
    assert Template(same).hash == mark
    assert changed("llama", other).hash != mark


def test_the_default_is_taken_where_a_tokenizer_has_several_templates():
    several = copy.deepcopy(base("llama").tokenizer)
    several.chat_template = {"default": CHATML, "tool_use": "x"}
    assert Template(several).hash == template("llama").hash


def test_a_text_gives_way_and_not_what_is_asked_behind_it():
    made = template("llama")
    (short,) = made.fit_text("dog " * 60, lambda text: [Message("user", f"{text}\n\nIs it a dog?")], 60)
    assert short.content.startswith("dog dog")
    assert short.content.endswith("Is it a dog?")
    assert len(made.prompt([short])) <= 60


def test_what_a_tokenizer_puts_before_every_text_stands_in_the_plain_words_that_are_kept_for_other_programs():
    made = tokenizer(("<s>", "</s>"), bos_token="<s>", eos_token="</s>")
    first = made.convert_tokens_to_ids("<s>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", first)]
    )
    ours = Template(made)
    asked = [{"role": "user", "content": "hi"}]
    theirs = made.apply_chat_template(asked, chat_template=ours.source, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert ours.prompt([Message("user", "hi")]) == theirs
    assert theirs.count(first) == 1
    chat = ours.chat([Message("user", "hi"), Message("assistant", "yes")])
    assert made.decode([i for i, learn in zip(chat.ids, chat.learn, strict=True) if learn]).startswith("yes")
