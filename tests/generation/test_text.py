"""Text of tokens piece by piece: always what the tokenizer makes of all tokens at once, cut at a stop string."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from reallm.generation.text import INCOMPLETE, TextPiece, TextStream, TokenDecoder
from tests.helpers.tokenizers import tiny_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SENTENCEPIECE = ["▁", "▁▁", "▁a", "b", "▁.", "é", "🙂", "\n", "<0x", *BYTES]
WORDS = ["hello", "##ing", "##s", "n", "'", "t", "s", "ve", "m", ".", ",", "?", "##.", "re", "r", "v", "n't", "x"]
SUFFIXED = ["hel", "lo</w>", "a</w>", ".</w>", "</w>", "é</w>"]
KINDS = ("bytes", "words", "llama", "gemma", "wordpiece", "cleaned wordpiece", "tidy wordpiece", "suffix")


def decoding(vocabulary: Sequence[str], decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that can decode, with the special token `<end>`, and `<think>`, an added one that is shown."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*vocabulary, "<end>"])}, "<end>"))
    tokenizer.decoder = decoder
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **options)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    spaces = decoders.Replace("▁", " ")
    match kind:
        case "bytes" | "words":
            return tiny_tokenizer(kind=kind)  # type: ignore[arg-type]
        case "llama":
            steps = [spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            return decoding(SENTENCEPIECE, decoders.Sequence(steps))
        case "gemma":
            return decoding(SENTENCEPIECE, decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()]))
        case "suffix":
            return decoding(SUFFIXED, decoders.BPEDecoder(suffix="</w>"))
        case _:
            decoder = decoders.WordPiece(prefix="##", cleanup=kind == "cleaned wordpiece")
            return decoding(WORDS, decoder, clean_up_tokenization_spaces=kind == "tidy wordpiece")


@st.composite
def token_ids(draw: st.DrawFn, kind: str) -> list[int]:
    """Ids, some of them in runs, and some that the tokenizer does not have."""
    one = st.integers(0, len(tokenizer(kind)) + 3)
    few = st.sampled_from(draw(st.lists(one, min_size=1, max_size=4)))
    return draw(st.one_of(st.lists(one, max_size=40), st.lists(few, max_size=60)))


def pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    """The pieces up to a stop string, and the rest."""
    stream = TextStream(TokenDecoder(tokenizer), stop)
    found = []
    for token in ids:
        piece = stream.push(token)
        found.append(piece.text)
        if piece.stop_string is not None:
            break
    found.append(stream.finish())
    assert stream.text == "".join(found)
    return found


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first if the characters come one by one, and that string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_are_the_text_of_all_tokens(kind: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(kind))
    found = pieces(tokenizer(kind), ids)
    assert "".join(found) == tokenizer(kind).decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_text_is_cut_at_the_stop_string_that_is_complete_first(kind: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(kind))
    text = str(tokenizer(kind).decode(ids, skip_special_tokens=True))
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 5))
    stops = [text[at : at + n] or "x" for at, n in data.draw(st.lists(spans, min_size=1, max_size=3))]
    stream = TextStream(TokenDecoder(tokenizer(kind)), stops)
    for token in ids:
        if stream.push(token).stop_string is not None:
            break
    stream.finish()
    assert (stream.text, stream.stop_string) == cut(text, stops)


@given(text=st.text(st.characters(codec="utf-8")))
@settings(max_examples=150, deadline=None)
def test_no_piece_ends_within_a_character(text: str) -> None:
    found = pieces(tokenizer("bytes"), tokenizer("bytes").encode(text, add_special_tokens=False))
    assert "".join(found) == text
    if INCOMPLETE not in text:
        assert not any(INCOMPLETE in piece for piece in found)


@given(text=st.text(" 'nvrt.sem?!,x", max_size=30), ends=st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=500, deadline=None)
def test_spaces_are_removed_as_in_the_whole_text(text: str, ends: list[int]) -> None:
    bounds = sorted({0, len(text), *(end for end in ends if end < len(text))})
    vocabulary = list(dict.fromkeys(text[start:end] for start, end in pairwise(bounds)))
    joined = decoding(vocabulary, decoders.Fuse(), clean_up_tokenization_spaces=True)
    ids = [vocabulary.index(text[start:end]) for start, end in pairwise(bounds)]
    assert "".join(pieces(joined, ids)) == joined.clean_up_tokenization(text)


def test_text_appears_as_soon_as_it_is_certain() -> None:
    llama = tokenizer("llama")
    names = ["▁a", "b", "<0xE2>", "<0x82>", "<0xAC>", "▁.", "<think>", "<end>", "é"]
    assert pieces(llama, llama.convert_tokens_to_ids(names)) == ["a", "b", "", "", "", "€ .", "<think>", "", "é", ""]
    tidy = tokenizer("tidy wordpiece")
    names = ["hello", ".", "x", "n", "'", "t", "x"]
    assert pieces(tidy, tidy.convert_tokens_to_ids(names)) == ["hello", ".", " x", "", "", "n't", " x", ""]


def test_a_replacement_character_may_be_meant() -> None:
    ids = tokenizer("bytes").encode(f"a{INCOMPLETE}b", add_special_tokens=False)
    assert "".join(pieces(tokenizer("bytes"), ids)) == f"a{INCOMPLETE}b"
    assert "".join(pieces(tokenizer("bytes"), ids[:-1])) == f"a{INCOMPLETE}"


def test_the_beginning_of_a_stop_string_is_held_back_and_released() -> None:
    words = decoding(["a", "E", "EN", "D", "ND!", "O"], decoders.Fuse())

    def streamed(text: list[str], *stop: str) -> list[TextPiece | str]:
        stream = TextStream(TokenDecoder(words), stop)
        found: list[TextPiece | str] = [stream.push(token) for token in words.convert_tokens_to_ids(text)]
        return [*found, stream.finish()]

    assert streamed(["a", "E", "ND!"], "END") == [("a", None), ("", None), ("", "END"), ""]
    assert streamed(["a", "EN", "O"], "END") == [("a", None), ("", None), ("ENO", None), ""]
    assert streamed(["a", "EN"], "END") == [("a", None), ("", None), "EN"]
    assert streamed(["E", "E", "ND!"], "END") == [("", None), ("E", None), ("", "END"), ""]
    assert streamed(["EN", "D"], "ENDING", "END") == [("", None), ("", "END"), ""]
    assert streamed(["EN", "D"], "D", "END") == [("", None), ("", "END"), ""]


def test_special_tokens_are_stop_strings_although_the_text_has_none() -> None:
    decoder = TokenDecoder(tokenizer("bytes"))
    end = tokenizer("bytes").convert_tokens_to_ids("<|im_end|>")
    euro = tokenizer("bytes").encode("€", add_special_tokens=False)
    stream = TextStream(decoder, ["never", "<|im_end|>"])
    for token in euro[:-1]:
        assert stream.push(token) == ("", None)
    assert stream.push(end) == (INCOMPLETE, "<|im_end|>")  # as in the whole text: no token follows
    assert (stream.finish(), stream.text, stream.stop_string) == ("", INCOMPLETE, "<|im_end|>")
    held = TextStream(decoder, ["<|im_end|>", "€uro"])
    assert "".join(held.push(token).text for token in euro) == ""
    assert held.push(end) == ("€", "<|im_end|>")
    skipped = TextStream(decoder, ["€"])
    assert [skipped.push(token).stop_string for token in (end, *euro)] == [None] * len(euro) + ["€"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["all tokens", "spaces", "one token", "incomplete characters"])
def test_the_number_of_decoded_tokens_is_linear(kind: str, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tokenizer(kind)
    number = random.Random(0)
    spaces = [i for i in range(len(chosen)) if not str(chosen.decode([i])).strip(" ")]
    incomplete = [i for i in range(len(chosen)) if chosen.decode([i]) == INCOMPLETE]
    choices = {"all tokens": range(len(chosen)), "spaces": spaces, "incomplete characters": incomplete}
    ids = number.choices(choices.get(of) or [0], k=4096)
    decoded: list[int] = []

    def decode(ids: list[int], **options: Any) -> Any:
        decoded.append(len(ids))
        return original(ids, **options)

    original = chosen.decode
    expected = original(ids, skip_special_tokens=True)
    monkeypatch.setattr(chosen, "decode", decode)
    assert "".join(pieces(chosen, ids, ["never seen"])) == expected
    assert sum(decoded) < 16 * len(ids)
