"""Text of tokens as they are generated, piece by piece, and the stop strings in it. Imports no torch.

The text of a sequence is not the texts of its tokens one after another: a character may have several tokens, some
tokenizers drop the space before the first word, and some put spaces between words or remove them again afterwards.
So the last few tokens are decoded together with each new one. Text that later tokens could change is held back:

    tokens    ▁na  ï  ve  <0xE2>  <0x82>  <0xAC>  ▁and  </  end  >        stop: "</end>"
    pieces    na   ï  ve                          € and
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from reallm.data.special_tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"
"""How tokenizers decode the bytes of an incomplete character."""
N_CONTEXT = 4
"""Number of tokens that are decoded again before a new one: an incomplete character has at most three bytes, so at
most three tokens, and one more says whether a word began before it."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MAY_BE_CLEANED = re.compile(r" [ ']*(?:n[ ']*)?[vr]?\Z")
"""The end of a text that `clean_up_tokenization` may change when more follows: the beginning of `" n't"`, `" 've"`,
`" ."`, ..., with spaces in it that it may have removed before."""


class TextPiece(NamedTuple):
    """Text that became certain with a token, and the stop string that the token completed, if any."""

    text: str
    stop_string: str | None = None


class TokenDecoder:
    """What streams of text need to know of a tokenizer; one for all of them.

    It decodes as `tokenizer.decode(ids, skip_special_tokens=True)` does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._kinds: dict[int, Literal["text", "byte", "skipped"]] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens without special tokens, before it is cleaned up."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @cached_property
    def cleans_up(self) -> bool:
        """Whether the tokenizer removes spaces before punctuation and contractions."""
        tokenizer = self._tokenizer
        if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
            return False
        # transformers does so for BPE only if it is told that it is wrong
        backend = getattr(tokenizer, "backend_tokenizer", None)
        is_bpe = type(getattr(backend, "model", None)).__name__ == "BPE"
        insists = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        return not is_bpe or bool(getattr(tokenizer, insists, False))

    def clean_up(self, text: str) -> str:
        """The text without spaces before punctuation and contractions."""
        return self._tokenizer.clean_up_tokenization(text)

    def kind(self, token_id: int) -> Literal["text", "byte", "skipped"]:
        """What a token is: text; a byte, of which several make a character; or skipped, as special tokens are."""
        kind = self._kinds.get(token_id)
        if kind is None:
            kind = self._kinds[token_id] = self._kind(token_id)
        return kind

    def name(self, token_id: int) -> str:
        """How the vocabulary writes a token: `<|im_end|>`; empty if it does not have it."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return token if isinstance(token, str) else ""

    def _kind(self, token_id: int) -> Literal["text", "byte", "skipped"]:
        name = self.name(token_id)
        if not name or (token_id in self._special_ids and not self.decode([token_id])):
            return "skipped"  # also what the model has more embeddings than the tokenizer has tokens
        if _BYTE.fullmatch(name) and self.decode([token_id]) != name:
            return "byte"
        return "text"

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return special_ids(self._tokenizer)


class TextStream:
    """The text of one sequence while its tokens are generated, up to the first stop string.

    The pieces of all tokens and the rest, joined, are `tokenizer.decode(ids, skip_special_tokens=True)`, cut before the
    stop string that is complete first; of those that are complete with the same character, the longest. A piece never
    has half a character, and no beginning of a stop string. A special token is a stop string like others, although the
    text does not have it.

    The number of decoded tokens is linear in the number of tokens.

        stream = TextStream(TokenDecoder(tokenizer), stop=("</answer>",))
        for token_id in generate():
            piece = stream.push(token_id)
            print(piece.text, end="")
            if piece.stop_string:
                break
        print(stream.finish())
    """

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._undecoded = _Window(decoder)
        self._uncleaned = ""
        self._stops = _StopStrings(stop)
        self._pieces: list[str] = []

    def push(self, token_id: int) -> TextPiece:
        """Append a token; returns the text that became certain with it."""
        assert self.stop_string is None, "the text has ended with a stop string"
        if self._decoder.kind(token_id) == "skipped":
            name = self._decoder.name(token_id)
            if name not in self._stops.strings:
                return TextPiece("")
            text = self._emit(self._stops.push(self._rest()) + self._stops.rest())
            self._stops.found = self._stops.found or name
        else:
            text = self._emit(self._stops.push(self._cleaned(self._undecoded.push(token_id))))
        return TextPiece(text, self.stop_string)

    def finish(self) -> str:
        """The rest of the text, which was held back; call it when the sequence has ended. `stop_string` may be set."""
        return self._emit(self._stops.push(self._rest()) + self._stops.rest())

    @property
    def text(self) -> str:
        """All text so far that is certain."""
        return "".join(self._pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string with which the text has ended, if it has."""
        return self._stops.found

    def _emit(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text

    def _rest(self) -> str:
        """What is not decoded or cleaned up yet, as it is if no token follows."""
        text = self._uncleaned + self._undecoded.finish()
        self._uncleaned = ""
        return self._decoder.clean_up(text) if self._decoder.cleans_up else text

    def _cleaned(self, text: str) -> str:
        """The text cleaned up, without an end of it that more text may change."""
        if not self._decoder.cleans_up:
            return text
        text = self._uncleaned + text
        uncertain = _MAY_BE_CLEANED.search(text)
        end = uncertain.start() if uncertain else len(text)
        self._uncleaned = text[end:]
        return self._decoder.clean_up(text[:end])


class _Window:
    """The last tokens of a sequence, which are decoded together to find what a new one adds to the text."""

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._n_shown = 0
        """Number of characters of the text of `_ids` that were returned."""

    def push(self, token_id: int) -> str:
        """Append a token; returns the text that became certain."""
        self._ids.append(token_id)
        if self._decoder.kind(token_id) == "byte":
            return ""  # the tokenizers library decodes a run of bytes to nothing else if its last byte is wrong
        text = self._decoder.decode(self._ids)
        # of several in a row only the last can become a character with the next bytes
        held = INCOMPLETE if text.endswith(INCOMPLETE) else ""
        certain = text[self._n_shown : len(text) - len(held)]
        self._n_shown = len(text) - len(held)
        if len(self._ids) >= 3 * N_CONTEXT:
            self._forget(held)
        return certain

    def finish(self) -> str:
        """The text that was held back."""
        text = self._decoder.decode(self._ids) if self._ids else ""
        rest, self._n_shown = text[self._n_shown :], len(text)
        return rest

    def _forget(self, held: str) -> None:
        """Drop tokens that no longer matter; the text of the others ends with what is held back."""
        recent = self._ids[-N_CONTEXT:]
        text = self._decoder.decode(recent)
        if not text.endswith(held):
            return
        if not text.removesuffix(held).strip(" "):  # a space at the very beginning may be dropped: keep a beginning
            recent = self._ids[:N_CONTEXT] + recent
            text = self._decoder.decode(recent)
        self._ids, self._n_shown = recent, len(text) - len(held)


class _StopStrings:
    """Finds the first stop string in a text that comes in pieces, and holds back what may be the beginning of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(dict.fromkeys(strings))
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that is certain, up to a stop string; none after one."""
        if self.found is not None:
            return ""
        if not self.strings:
            return piece
        text, self._held = self._held + piece, ""
        ends = [(at + len(stop), at, stop) for stop in self.strings if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            return text[:at]
        certain = len(text) - max(_overlap(text, stop) for stop in self.strings)
        self._held = text[certain:]
        return text[:certain]

    def rest(self) -> str:
        """The text that was held back."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that are the beginning, but not all, of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
