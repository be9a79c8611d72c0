"""What Ollama is told about a model's chats."""

from __future__ import annotations

from tests.bases import template
from tunesmith.inference.modelfile import modelfile


def test_a_chat_of_turns_is_told_with_the_system_text_that_the_template_adds():
    assert modelfile(template("llama"), gguf="model.gguf") == (
        "FROM ./model.gguf\n"
        "PARAMETER temperature 0\n"
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


def test_a_chat_that_takes_no_system_turn_gets_no_template():
    assert "no TEMPLATE" in modelfile(template("gemma"), gguf="model.gguf")


def test_a_model_of_texts_goes_on_with_what_it_is_given():
    made = modelfile(template("llama"), gguf="model.gguf", texts=True)
    assert made.splitlines()[2:] == ['TEMPLATE """{{ .Prompt }}"""', 'PARAMETER stop "<|im_end|>"']
