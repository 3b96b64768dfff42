"""Small tokenizers of the two kinds that language models use, trained in milliseconds."""

from __future__ import annotations

from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system hello world, how are you today?\n\n\nI am well.",
    "def add(a, b):\n    return a + b\n",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(
    *,
    kind: Literal["bytes", "words"] = "bytes",
    bos: bool = False,
    chat_template: str | None = CHATML,
    trim_offsets: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer with about 400 tokens.

    Args:
        kind: "bytes" encodes any text without loss, like GPT-2, Llama 3 and SmolLM2. "words" marks the beginnings
            of words with "▁", also at the start of a text, like Llama 1 and 2.
        bos: whether to prepend the beginning-of-sequence token `<s>`.
        chat_template: ChatML by default; None for no template.
        trim_offsets: whether offsets exclude whitespace at the ends of a token, like Llama 3.
    """
    special = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>", "<pad>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if kind == "words" else None))
    alphabet = [] if kind == "words" else pre_tokenizers.ByteLevel.alphabet()
    if kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    after: list[Any] = [processors.ByteLevel(trim_offsets=trim_offsets)] if kind == "bytes" else []
    if bos:
        after.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special.index("<s>"))]))
    if after:
        tokenizer.post_processor = processors.Sequence(after)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    made.chat_template = chat_template
    return made
