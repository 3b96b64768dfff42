"""A question that a trained model can be asked by `reallm generate`: one of its data, in the form it was trained on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from reallm.config.args import ModelArgs
from reallm.data.datasets import Samples
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPT = "Once upon a time"
DEFAULT_QUESTION = "What can you do?"
N_LOOKED_AT = 20
"""Number of samples among which a short prompt is looked for."""
MAX_LENGTH = 80
"""Most characters of a prompt to print."""
_CONTENT = "\ufdd0"  # permanently not a character: no template contains it


def question(samples: Samples, interface: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """The arguments of `reallm generate` for a question: `--chat 'Who wrote Faust?'` if samples are conversations.

    Args:
        samples: samples to take a prompt from.
        interface: interface that makes prompts of samples, if it can (`example`).
        tokenizer: tokenizer of the samples, whose chat template prompts are compared with.
    """
    prompts = _prompts(samples, interface, tokenizer)
    around = _around_question(tokenizer)
    is_chat = around is not None and any(prompt.endswith(around[1]) for prompt in prompts)
    for prompt in prompts:
        asked: str | None = prompt
        if is_chat and around is not None:
            asked = _first_question(prompt, *around)
        if asked is not None and _is_short(asked, tokenizer):
            return f"--chat {shlex.quote(asked)}" if is_chat else shlex.quote(asked)
    return f'--chat "{DEFAULT_QUESTION}"' if is_chat else f'"{DEFAULT_PROMPT}"'


def with_implementation(arguments: str, args: ModelArgs) -> str:
    """Arguments of `reallm generate` for a model that layers of a plugin compute, if they do."""
    if args.implementation == STANDARD_IMPLEMENTATION:
        return arguments
    return f"--implementation {shlex.quote(args.implementation)} {arguments}"


def _prompts(samples: Samples, interface: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompts of the first samples as text, as the model sees them, but without a beginning-of-sequence token."""
    make_example = getattr(interface, "example", None)
    if make_example is None:
        return []
    examples = [make_example(samples[i]) for i in range(min(len(samples), N_LOOKED_AT))]
    texts = [str(tokenizer.decode(example.prompt_ids)) for example in examples if example is not None]
    return [text.removeprefix(str(tokenizer.bos_token or "")) for text in texts]


def _around_question(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """What the chat template writes before and after a single question; None if it writes none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": _CONTENT}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # the template is a program that came with the tokenizer and may raise anything
        return None
    before, found, after = text.partition(_CONTENT)
    return (before.removeprefix(str(tokenizer.bos_token or "")), after) if found and after else None


def _first_question(prompt: str, before: str, after: str) -> str | None:
    """What the user says first in a conversation that begins as a single question does."""
    end = prompt.find(after, len(before))
    return prompt[len(before) : end] if prompt.startswith(before) and end >= 0 else None


def _is_short(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a prompt fits on a command line: short, printable, not blank, and without special tokens."""
    is_plain = text.isprintable() and not any(token in text for token in tokenizer.all_special_tokens)
    return bool(text.strip()) and len(text) <= MAX_LENGTH and is_plain
