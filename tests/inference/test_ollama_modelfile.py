"""What Ollama is told about a model's chats."""

from __future__ import annotations

import copy

from tests.bases import template
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.inference.export.ollama_modelfile import modelfile


def test_a_chat_of_turns_is_told_with_the_system_text_that_the_template_adds():
    assert modelfile(template("llama"), gguf="model.gguf") == (
        "FROM ./model.gguf\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1.0\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}{{ end }}<|im_end|>\n<|im_start|>user\n'
        '{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}"""\n'
        'SYSTEM """You are a helpful assistant."""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_the_instruction_that_a_run_learned_behind_stands_in_one_comment():
    made = modelfile(template("llama"), gguf="model.gguf", instruction="Summarise\nthis:")
    (line,) = [line for line in made.splitlines() if line.startswith("#")]
    assert line.endswith("write it before each text: Summarise this:")


def test_a_chat_that_rewrites_its_turns_gets_no_template():
    assert "no TEMPLATE" in modelfile(template("qwen3"), gguf="model.gguf")


def test_a_thinking_model_that_thinks_by_default_has_a_template_without_an_empty_block():
    written = modelfile(template("qwen3"), gguf="model.gguf", thinking=True)
    assert "TEMPLATE" in written
    assert "<think>" not in written


def with_header(header: str, *, opening: str = "") -> Template:
    """A chat format with this text before every system message, and this one at the end of the generation prompt."""
    tokenizer = copy.deepcopy(template("llama").tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.first %}<|im_start|>system\n" + header + "\n"
        "{{ m['content'] if m['role'] == 'system' else '' }}<|im_end|>\n{% endif %}{% if m['role'] != 'system' %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + opening + "{% endif %}"
    )
    return Template(tokenizer)


def test_a_run_without_thoughts_gets_no_template_that_opens_a_block_of_thoughts():
    form = with_header("Today", opening="<think>\n")
    assert form.thinks
    assert not form.switch
    assert "no TEMPLATE" in modelfile(form, gguf="model.gguf")


def test_a_template_that_takes_an_effort_is_rendered_with_a_word_for_it():
    form = with_header("{{ 'effort ' + (reasoning_effort | default('none')) }}")
    assert form.switch == "reasoning_effort"
    assert 'TEMPLATE """<|im_start|>system\neffort medium\n' in modelfile(form, gguf="model.gguf", thinking=True)
    assert 'TEMPLATE """<|im_start|>system\neffort low\n' in modelfile(form, gguf="model.gguf")


def test_a_chat_that_takes_no_system_turn_gets_no_template():
    assert "no TEMPLATE" in modelfile(template("gemma"), gguf="model.gguf")


def test_a_model_of_texts_goes_on_with_what_it_is_given():
    made = modelfile(template("llama"), gguf="model.gguf", texts=True)
    assert made.splitlines()[3:] == ['TEMPLATE """{{ .Prompt }}"""', 'PARAMETER stop "<|im_end|>"']


def test_as_much_is_read_as_the_run_reads_and_a_header_without_a_system_text_stands_in_every_chat():
    form = with_header("Today")
    made = modelfile(form, gguf="model.gguf", context=2560)
    assert "PARAMETER num_ctx 2560" in made
    assert 'TEMPLATE """<|im_start|>system\nToday\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}' in made
    assert "num_ctx" not in modelfile(form, gguf="model.gguf", context=600)
