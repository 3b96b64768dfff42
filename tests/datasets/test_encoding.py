"""Tokens of prompts with answers, and of conversations: first the prompt's own, then what is to be written."""

from __future__ import annotations

import inspect
import pydoc_data.topics
import subprocess
import sys
import textwrap
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.data.chat.template import Conversation
from reallm.data.rows import Row
from reallm.errors import DataError
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from tests.helpers.tokenizers import tiny_tokenizer

BYTES = tiny_tokenizer()
WORDS = tiny_tokenizer(kind="words", bos=True)
TRIMMED = tiny_tokenizer(trim_offsets=True)
ENCODERS = {"bytes": (BYTES, Encoder(BYTES)), "words": (WORDS, Encoder(WORDS)), "trimmed": (TRIMMED, Encoder(TRIMMED))}


def encode(prompt: str, answer: str, kind: str = "bytes") -> tuple[list[int], list[int], Any]:
    """The tokens before the answer, those of the answer, and the tokenizer."""
    tokenizer, encoder = ENCODERS[kind]
    [encoded] = encoder.sequences([PromptAnswer(prompt, answer)])
    return *split(encoded), tokenizer


def split(encoded: Encoded) -> tuple[list[int], list[int]]:
    ids, n_prompt = encoded.ids.tolist(), int((~encoded.answer_mask).sum())
    assert not encoded.answer_mask[:n_prompt].any()
    return ids[:n_prompt], ids[n_prompt:]


def check(tokenizer: Any, prompt: str, answer: str, before: list[int], after: list[int]) -> None:
    assert before == tokenizer(prompt, verbose=False)["input_ids"]
    assert after[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(before + after[:-1], skip_special_tokens=True) == prompt + answer
    assert tokenizer.bos_token_id not in after


@settings(deadline=None)
@given(st.text(alphabet=" \nab1é😀.the", max_size=12), st.text(alphabet=" \nab1é😀.the", max_size=12))
def test_the_prompts_own_tokens_are_a_prefix_and_the_text_is_kept(prompt: str, answer: str) -> None:
    for kind in ("bytes", "trimmed"):
        before, after, tokenizer = encode(prompt, answer, kind)
        check(tokenizer, prompt, answer, before, after)


@pytest.mark.parametrize("answer", ["Paris.", " Paris.", "is the", ""])
@pytest.mark.parametrize("prompt", ["The capital", "The capital ", "The c"])
def test_a_tokenizer_that_marks_words_gets_no_space_between_prompt_and_answer(prompt: str, answer: str) -> None:
    before, after, tokenizer = encode(prompt, answer, "words")
    check(tokenizer, prompt, answer, before, after)


def test_a_merge_across_the_boundary_is_undone() -> None:
    whole = BYTES("the capital")["input_ids"]
    before, after, _ = encode("the cap", "ital")
    assert before + after[:-1] != whole
    check(BYTES, "the cap", "ital", before, after)


def test_the_beginning_and_the_end_of_sequence_come_once() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    encoder = Encoder(tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for prompt, answer in [("a", "b"), ("<s>a", "b<|im_end|>")]:
        [encoded] = encoder.sequences([PromptAnswer(prompt, answer)])
        ids = encoded.ids.tolist()
        assert (ids[0], ids[-1]) == (bos, eos)
        assert (ids.count(bos), ids.count(eos)) == (1, 1)
    assert encoder.prompts(["a", "<s>a", ""], [False] * 3)[2].tolist() == [bos]


def test_empty_prompts_and_answers() -> None:
    eos = BYTES.eos_token_id
    assert encode("", "")[:2] == ([], [eos])
    assert encode("a", "")[1] == [eos]
    assert encode("", "a")[0] == []


def test_tokens_of_a_rendered_prompt_are_left_alone() -> None:
    encoder = ENCODERS["words"][1]
    plain, rendered = encoder.prompts(["the"] * 2, [False, True])
    assert plain.tolist() == [WORDS.bos_token_id, *rendered.tolist()]


def test_a_tokenizer_without_an_end_of_sequence_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="the tokenizer has no end-of-sequence token, which answers end with"):
        Encoder(tokenizer).sequences([PromptAnswer("a", "b")])


def chat(encoder: Encoder, *contents: str) -> Conversation:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return encoder.chat.conversation(messages, Row("1", "here", {}))


@settings(deadline=None)
@given(st.lists(st.text(alphabet=" \nab1é😀.the", max_size=8), min_size=2, max_size=6))
def test_in_a_conversation_what_is_written_is_the_turns_and_each_prompt_has_its_own_tokens(contents: list[str]) -> None:
    for kind in ("bytes", "trimmed"):
        tokenizer, encoder = ENCODERS[kind]
        conversation = chat(encoder, *contents)
        [encoded] = encoder.sequences([conversation])
        assert tokenizer.decode(encoded.ids) == conversation.text
        written = tokenizer.decode(encoded.ids[encoded.answer_mask])
        assert written == "".join(conversation.text[start:end] for start, end in conversation.turns)
        start = conversation.turns[0][0]
        prompt = tokenizer(conversation.text[:start])["input_ids"]
        assert encoded.ids[: len(prompt)].tolist() == prompt
        assert not encoded.answer_mask[: len(prompt)].any()
        assert encoded.answer_mask[len(prompt)]


def test_an_answer_that_would_merge_with_the_header_of_its_turn_does_not() -> None:
    # "assistant\n" and "\n\nI" make the token "\n\n" in running text, which no prompt ends with.
    tokenizer, encoder = ENCODERS["bytes"]
    conversation = chat(encoder, "hi", "\n\nI am", "and", "well")
    assert "ĊĊ" in tokenizer.convert_ids_to_tokens(tokenizer(conversation.text)["input_ids"])
    [encoded] = encoder.sequences([conversation])
    assert tokenizer.decode(encoded.ids) == conversation.text
    assert tokenizer.decode(encoded.ids[encoded.answer_mask]) == "\n\nI am<|im_end|>well<|im_end|>"


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_a_conversation_without_special_tokens(kind: Literal["bytes", "words"]) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ' ' + m.content + '. ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(kind=kind, chat_template=template)
    encoder = Encoder(tokenizer)
    [encoded] = encoder.sequences([chat(encoder, "hello", "I am well", "how", "the dog")])
    written = str(tokenizer.decode(encoded.ids[encoded.answer_mask]))
    assert written.replace(" ", "") == "Iamwell.thedog.<|im_end|>"


def test_pairs_and_conversations_may_be_mixed() -> None:
    encoder = ENCODERS["bytes"][1]
    texts: list[PromptAnswer | Conversation]
    texts = [PromptAnswer("a", "b"), chat(encoder, "hi", "one"), PromptAnswer("c", "d"), chat(encoder, "hi", "two")]
    together = encoder.sequences(texts)
    for text, encoded in zip(texts, together, strict=True):
        [alone] = encoder.sequences([text])
        assert alone.ids.tolist() == encoded.ids.tolist()
        assert alone.answer_mask.tolist() == encoded.answer_mask.tolist()


def test_conversations_need_a_tokenizer_that_knows_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    encoder = Encoder(tokenizer)
    with pytest.raises(DataError, match="cannot tell where in the text a token comes from"):
        encoder.sequences([chat(encoder, "hi", "one")])


def test_real_text() -> None:
    pairs = [
        PromptAnswer(f"{name}\n", textwrap.shorten(text, 400))
        for name, text in sorted(pydoc_data.topics.topics.items())
    ]
    pairs += [
        PromptAnswer(f"def {name}{inspect.signature(member)}:\n", inspect.getdoc(member) or "")
        for name, member in inspect.getmembers(textwrap, inspect.isfunction)
    ]
    assert len(pairs) > 70
    tokenizer, encoder = ENCODERS["bytes"]
    for pair, encoded in zip(pairs, encoder.sequences(pairs), strict=True):
        check(tokenizer, *pair, *split(encoded))


def test_workers_import_no_torch() -> None:
    code = (
        "import sys, reallm.data.tokenization.worker; "
        "from reallm_datasets.encoders import prompt, prompt_answer, rw_pair, unpaired_preference; "
        "from transformers import PreTrainedTokenizerFast; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
