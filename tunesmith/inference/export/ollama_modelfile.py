"""Modelfiles for Ollama, which uses Go templates and ignores the chat template in a GGUF file."""

from __future__ import annotations

from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import TemplateError

OWN_CONTEXT = 2048  # default context length of Ollama, in tokens
# Placeholders for message contents, from the private use area.
SYSTEM, USER, ANSWER = "\ue000", "\ue001", "\ue002"


def modelfile(
    template: Template,
    *,
    gguf: str,
    instruction: str = "",
    texts: bool = False,
    context: int = 0,
    thinking: bool = False,
) -> str:
    """Write a Modelfile.

    Args:
        template: the chat template; one that is not a chain of turns cannot be expressed and is replaced by a comment.
        gguf: file name of the model.
        instruction: instruction of the recipe, written as a comment.
        texts: the model completes texts without a chat.
        context: tokens of the longest prompt with its answer.
        thinking: whether prompts ask for thoughts before the answer.
    """
    # The default repetition penalty of Ollama would change greedy answers.
    lines = [f"FROM ./{gguf}", "PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0"]
    lines += [f"PARAMETER num_ctx {context}"] if context > OWN_CONTEXT else []
    if instruction:
        lines.append(f"# It learned behind an instruction; write it before each text: {' '.join(instruction.split())}")
    stops = [f'PARAMETER stop "{template.tokenizer.decode([stop])}"' for stop in sorted(template.stop_ids)]
    if texts:
        return "\n".join([*lines, 'TEMPLATE """{{ .Prompt }}"""', *stops, ""])
    turns = _turns(template, thinking=thinking)
    if turns is None:
        return "\n".join([*lines, "# Chats are not written turn after turn here, so no TEMPLATE can say how.", ""])
    opening, asking, answering, system = turns
    said = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{{{{ end }}}}{asking}{{{{ .Prompt }}}}{answering}"
    alone = _rendered(template, "user", thinking=thinking)
    if not system and alone.startswith(opening):  # present without a system message too
        said = f"{opening}{{{{ .System }}}}{asking}{{{{ .Prompt }}}}{answering}"
    lines.append(f'TEMPLATE """{said}{{{{ .Response }}}}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join([*lines, *stops, ""])


def _turns(template: Template, *, thinking: bool) -> tuple[str, str, str, str] | None:
    """Return the fixed texts of a chat; None if a chat is not a chain of these.

    They are the text before a system message, between it and a user message, between a user and an assistant message,
    and the default system message.
    """
    try:
        whole = _rendered(template, "system", "user", "assistant", "user", thinking=thinking)
        alone = _rendered(template, "user", thinking=thinking)
    except TemplateError:  # the template rejects system messages
        return None
    opening, _, rest = whole.partition(SYSTEM)
    asking, _, rest = rest.partition(USER)
    answering, _, rest = rest.partition(ANSWER)
    if rest != f"{asking}{USER}{answering}":
        return None
    system = alone.removeprefix(opening).partition(asking)[0]
    if alone not in (f"{asking}{USER}{answering}", f"{opening}{system}{asking}{USER}{answering}"):
        return None
    return opening, asking, answering, system if alone.startswith(opening) else ""


def _rendered(template: Template, *roles: str, thinking: bool) -> str:
    """Render a chat of these roles, up to the beginning of an answer."""
    contents = {"system": SYSTEM, "user": USER, "assistant": ANSWER}
    return template.prompt_text([{"role": role, "content": contents[role]} for role in roles], thinking=thinking)
