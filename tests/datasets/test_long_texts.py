"""Rows far longer than `max_seqlen`: a part is tokenized, and what is kept is that of the whole, token for token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reallm.data import long_texts as module
from reallm.data.long_texts import LongTexts
from reallm.data.row import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm_datasets.encoders.prompt import PromptEncoder
from reallm_datasets.encoders.prompt_answer import PromptAnswerEncoder
from reallm_datasets.encoders.rw_pair import PairEncoder
from tests.helpers.tokenizers import TEXT, tiny_tokenizer

N = 16
LENGTH = 24_000
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3() -> PreTrainedTokenizerFast:
    """Byte-level merges within the words of a pattern, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    splitters = [
        pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained_on = [*TEXT, "a" * 32, " " * 32, "abab" * 8]
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(trained_on, trainer)
    tokenizer.add_special_tokens([AddedToken("<eos>", normalized=False, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Merges over a whole text, which is not split into words, as in Llama 2 and Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, min_frequency=1, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator([*TEXT, "a" * 12, "abab" * 3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


TOKENIZERS = {
    "bytes": tiny_tokenizer(),
    "trimmed": tiny_tokenizer(trim_offsets=True),
    "words": tiny_tokenizer(kind="words", bos=True),
    "llama_3": llama_3(),
    "sentencepiece": sentencepiece(),
}


def repeated(text: str) -> str:
    return (text * (LENGTH // len(text) + 1))[:LENGTH]


def drawn(alphabet: str) -> str:
    return "".join(random.Random(1).choices(alphabet, k=LENGTH))


TEXTS = {
    "prose": repeated(" ".join(TEXT)),
    "one word": "a" * LENGTH,
    "one word of two": repeated("ab"),
    "blanks": " " * LENGTH,
    "newlines": "\n" * LENGTH,
    "blanks and newlines": drawn(" \n\t"),
    "newline after blanks": repeated(" " * 9_000 + "\n"),
    "signs": drawn("'!?ls tdre"),
    "digits": drawn("0123456789"),
    "special": drawn("<|im_start|>"),
    "marked": repeated("The quick <|im_start|>user brown<|im_end|>"),
    "accents": repeated("été e\u0301te\u0301 "),
    "not ASCII": drawn("北京今天的天气很好。"),
    "emoji": "😀" * LENGTH,
}


@pytest.fixture(autouse=True)
def _long_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHARACTERS", 1_000)


def whole(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_first_tokens_are_those_of_the_whole(tokenizer: Any, text: str) -> None:
    found, wanted = LongTexts(tokenizer).first(text, N), whole(tokenizer, text)
    assert found is not None
    assert found.ids == wanted["input_ids"][:N]
    assert found.ends.tolist() == [end for _, end in wanted["offset_mapping"][:N]]


@pytest.mark.parametrize("text", ["prose", "accents", "marked"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_last_tokens_are_those_of_the_whole(tokenizer: Any, text: str) -> None:
    assert LongTexts(tokenizer).last(TEXTS[text], N) == whole(tokenizer, TEXTS[text])["input_ids"][-N:]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_small_part_of_the_text_is_tokenized(tokenizer: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    tokens = LongTexts._tokens
    monkeypatch.setattr(LongTexts, "_tokens", lambda self, part: sizes.append(len(part)) or tokens(self, part))
    monkeypatch.setattr(module, "_MOST", 32)
    texts = LongTexts(TOKENIZERS[tokenizer])
    first, last = texts.first(TEXTS[text], N), texts.last(TEXTS[text], N)
    assert first is not None
    assert last is not None
    assert max(sizes) < LENGTH / 4
    if len(whole(TOKENIZERS[tokenizer], TEXTS[text])["input_ids"]) > N:  # else there is no more in all of it
        assert sum(sizes) < LENGTH / 2


def test_a_text_that_may_be_short_enough_is_left_alone() -> None:
    assert LongTexts(TOKENIZERS["bytes"]).first(TEXTS["prose"], LENGTH) is None
    assert LongTexts(TOKENIZERS["bytes"]).first("hello", N) is None


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"a.jsonl:{i}", f"a.jsonl:{i}", value, i) for i, value in enumerate(values)]


def same(found: Sequence[EncodedRow], wanted: Sequence[EncodedRow]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.remarks == other.remarks
        assert (one.fields is None) == (other.fields is None)
        for name in one.fields or ():
            np.testing.assert_array_equal(one.fields[name], other.fields[name])


LONG = [TEXTS[name][: LENGTH // 2] for name in ("prose", "one word", "not ASCII")]
MESSAGES = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}, *more]
    for question, answer in (("Hi", LONG[0]), (LONG[0], "Hi"), ("Hi", LONG[1]), ("Hi", "Hi"), (LONG[1], LONG[0]))
    for more in ([], [{"role": "user", "content": LONG[0]}, {"role": "assistant", "content": "Yes."}])
]
ROWS = rows(
    *({"prompt": "The", "answer": text} for text in LONG),
    *({"prompt": text, "answer": " is"} for text in LONG),
    *({"prompt": text, "answer": text} for text in LONG),
    *({"text": text} for text in LONG),
    {"prompt": "The", "answer": " capital"},
    *({"messages": messages} for messages in MESSAGES),
)
PAIRS = rows(
    {"prompt": "The", "chosen": LONG[0], "rejected": LONG[0] + "."},
    {"prompt": "The", "chosen": LONG[0], "rejected": LONG[0]},
    {"prompt": LONG[0], "chosen": "a", "rejected": "b"},
    {"prompt": "The", "chosen": LONG[0], "rejected": LONG[1]},
    {"chosen": MESSAGES[0], "rejected": MESSAGES[4]},
)


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
@pytest.mark.parametrize("tokenizer", ["bytes", "trimmed"])
def test_what_is_kept_of_rows_is_the_same(tokenizer: str, overlong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TOKENIZERS[tokenizer]

    def encoded() -> list[list[EncodedRow]]:
        return [
            *(PromptAnswerEncoder(made, 2 * N, overlong, on, ()).encode(ROWS) for on in ("assistant", "all")),
            PairEncoder(made, 2, 2 * N, overlong, 1, ()).encode(PAIRS),
            PromptEncoder(made, 2 * N, overlong, ()).encode(ROWS[:9]),
        ]

    found = encoded()
    monkeypatch.setattr(module, "MIN_CHARACTERS", LENGTH * 10)
    for one, wanted in zip(found, encoded(), strict=True):
        same(one, wanted)
