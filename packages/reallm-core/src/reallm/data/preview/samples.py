"""The sequences of a sample, token by token, with what is trained of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Literal

from reallm.data.metadata import thaw
from reallm.data.namedarray import NamedArray
from reallm.data.preview.token_text import token_texts
from reallm.data.special_tokens import special_ids
from reallm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_COLUMN = 60
"""Characters of a column's value that are shown."""


@dataclass(frozen=True)
class Token:
    """A token of a sample: its id, the text that it adds (see `token_texts`), and what it is."""

    id: int
    text: str
    is_trained: bool
    is_special: bool


@dataclass(frozen=True)
class Sequence:
    """A sequence of a sample. `name` says which one, if there are several."""

    name: str
    tokens: tuple[Token, ...]
    n_prompt: int | None = None
    """Number of tokens of the prompt, if the sequence is a prompt with an answer; None: `is_trained` says it all."""
    n_cut: int = 0
    """Number of tokens that are missing, because the sequence was too long."""
    cut_at: Literal["start", "end"] = "end"

    @property
    def turns(self) -> list[tuple[int, int]]:
        """First and last position + 1 of each run of trained tokens: of the answer, or of each turn."""
        ends = [0, *accumulate(len(list(run)) for _, run in groupby(self.tokens, lambda token: token.is_trained))]
        return [(start, end) for start, end in pairwise(ends) if self.tokens[start].is_trained]

    @property
    def n_trained(self) -> int:
        """Number of trained tokens."""
        return sum(token.is_trained for token in self.tokens)

    def cut_from(self, whole: Sequence) -> Sequence:
        """This sequence, with what it lacks of `whole`."""
        n_cut = len(whole.tokens) - len(self.tokens)
        is_beginning = [token.id for token in whole.tokens[: len(self.tokens)]] == [token.id for token in self.tokens]
        return replace(self, n_cut=max(0, n_cut), cut_at="end" if is_beginning else "start")


def sequences(sample: NamedArray, tokenizer: PreTrainedTokenizerBase) -> list[Sequence]:
    """The sequences of a sample.

    They are those of `input_ids`, of which `loss_mask` says what is trained, or `prompt_lens` which tokens are the
    answer; or else the prompt in `prompt_ids`.

    Raises:
        DataError: the sample has neither `input_ids` nor `prompt_ids`.
    """
    special = special_ids(tokenizer)
    found = []
    for name, ids, trained, n_prompt in _parts(sample):
        texts = token_texts(tokenizer, ids)
        tokens = (Token(*one, one[0] in special) for one in zip(ids, texts, trained, strict=True))
        found.append(Sequence(name, tuple(tokens), n_prompt))
    return found


def notes(sample: NamedArray) -> list[str]:
    """What a sample has beside its tokens, as phrases: `margin 0.5`, and the row's columns, shortened."""
    found = []
    if "margins" in sample and any(sample["margins"].tolist()):
        margins = [f"{margin:g}" for margin in sample["margins"].tolist()]
        found.append(f"margin{'s' if len(margins) > 1 else ''} {', '.join(margins)}")
    columns = sample.metadata.get("columns", ({},))[0]
    for name, value in columns.items():
        if name in ("id", "messages"):  # shown as the place of the row, and as its tokens
            continue
        text = json.dumps(thaw(value), ensure_ascii=False)
        found.append(f"{name}={text if len(text) <= MAX_COLUMN else f'{text[:MAX_COLUMN]}…'}")
    return found


def count_tokens(sample: NamedArray) -> tuple[int, int]:
    """The number of tokens of a sample, and how many of them are trained; see `sequences`."""
    parts = list(_parts(sample))
    return sum(len(ids) for _, ids, _, _ in parts), sum(sum(trained) for _, _, trained, _ in parts)


def _parts(sample: NamedArray) -> Iterator[tuple[str, list[int], list[bool], int | None]]:
    """Name, ids, mask of what is trained, and length of the prompt, of each sequence."""
    if "input_ids" not in sample:
        if "prompt_ids" not in sample:
            raise DataError(f"a preview needs 'input_ids' or 'prompt_ids', but samples have only {', '.join(sample)}")
        ids = sample["prompt_ids"].tolist()
        yield "prompt", ids, [False] * len(ids), None
        return
    ids = sample["input_ids"].tolist()
    lengths = sample.metadata.get("seqlens", {}).get("input_ids", ((len(ids),),))[0]
    mask = sample["loss_mask"].tolist() if "loss_mask" in sample else None
    prompt_lens = sample["prompt_lens"].tolist() if "prompt_lens" in sample else None
    for i, (start, end) in enumerate(pairwise([0, *accumulate(lengths)])):
        if mask is not None:
            trained = [bool(value) for value in mask[start:end]]
        else:
            answer_at = end - start if prompt_lens is None else prompt_lens[i]
            trained = [position >= answer_at for position in range(end - start)]
        name = _name(sample, i, len(lengths))
        yield name, ids[start:end], trained, None if prompt_lens is None else prompt_lens[i]


def _name(sample: NamedArray, i: int, n: int) -> str:
    if n == 1:
        return ""
    if "prompt_lens" not in sample:
        return f"sequence {i + 1}"
    if "labels" in sample:
        good = bool(sample["labels"][i // 2])
        return "completion of another row" if i % 2 else f"{'good' if good else 'bad'} completion"
    which = "rejected" if i % 2 else "chosen"
    return which if n == 2 else f"pair {i // 2 + 1}, {which}"
