"""The sequences of samples of all kinds, and what is trained of them."""

from __future__ import annotations

import pytest
import torch

from reallm.data.namedarray import NamedArray
from reallm.data.preview.samples import MAX_COLUMN, Sequence, Token, count_tokens, notes, sequences
from reallm.errors import DataError
from tests.helpers.tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.encode("<|im_start|>The quick fox<|im_end|>")


def sample(**fields: list[int] | list[bool] | list[float]) -> NamedArray:
    return NamedArray(**{name: torch.tensor(values) for name, values in fields.items()})


def test_a_mask_says_what_is_trained_in_how_many_turns():
    mask = [False, True, True, *[False] * (len(IDS) - 4), True]
    (sequence,) = sequences(sample(input_ids=IDS, loss_mask=mask), TOKENIZER)
    assert [token.is_trained for token in sequence.tokens] == mask
    assert [token.is_special for token in sequence.tokens] == [True, *[False] * (len(IDS) - 2), True]
    assert sequence.turns == [(1, 3), (len(IDS) - 1, len(IDS))]
    assert sequence.n_trained == 3
    assert sequence.name == ""


@pytest.mark.parametrize(
    ("lengths", "names"),
    [
        ((3, 4), ["chosen", "rejected"]),
        ((1, 2, 2, 2), [f"pair {i}, {which}" for i in (1, 2) for which in ("chosen", "rejected")]),
    ],
)
def test_pairs_are_shown_side_by_side_with_their_answers(lengths, names):
    ids = TOKENIZER.encode("0123456")
    assert len(ids) == sum(lengths)
    pairs = sample(input_ids=ids, prompt_lens=[1] * len(lengths)).with_metadata(
        seqlens={"input_ids": (lengths,), "prompt_lens": ((1,) * len(lengths),)}
    )
    found = sequences(pairs, TOKENIZER)
    assert [one.name for one in found] == names
    assert [len(one.tokens) for one in found] == list(lengths)
    assert [one.n_trained for one in found] == [length - 1 for length in lengths]
    assert [one.n_prompt for one in found] == [1] * len(lengths)
    assert count_tokens(pairs) == (7, 7 - len(lengths))


@pytest.mark.parametrize(("label", "name"), [(True, "good completion"), (False, "bad completion")])
def test_a_labelled_completion_has_that_of_another_row_beside_it(label, name):
    ids = TOKENIZER.encode("0123456")
    labelled = sample(input_ids=ids, prompt_lens=[2, 2], labels=[label]).with_metadata(
        seqlens={"input_ids": ((3, 4),), "prompt_lens": ((1, 1),), "labels": ((1,),)}
    )
    assert [(one.name, one.n_prompt) for one in sequences(labelled, TOKENIZER)] == [
        (name, 2),
        ("completion of another row", 2),
    ]


def test_margins_and_columns_are_notes():
    assert notes(sample(margins=[0.0, 0.0])) == []
    assert notes(sample(margins=[0.5])) == ["margin 0.5"]
    assert notes(sample(margins=[0.5, 2.0])) == ["margins 0.5, 2"]
    columns = {"id": 7, "messages": [], "answer": "é", "tests": [{"in": 1}], "long": "x" * 99}
    prompt = sample(prompt_ids=IDS).with_metadata(columns=[columns])
    assert notes(prompt) == ['answer="é"', 'tests=[{"in": 1}]', f'long="{"x" * (MAX_COLUMN - 1)}…']


def test_a_prompt_alone_is_not_trained():
    (sequence,) = sequences(sample(prompt_ids=IDS), TOKENIZER)
    assert (sequence.name, sequence.n_trained, sequence.turns) == ("prompt", 0, [])


def test_a_sample_without_tokens_cannot_be_shown():
    with pytest.raises(DataError, match="needs 'input_ids' or 'prompt_ids', but samples have only scores"):
        sequences(sample(scores=[1]), TOKENIZER)


def test_what_was_cut_off_is_counted_at_its_end():
    tokens = tuple(Token(i, "x", False, False) for i in range(9))
    whole = Sequence("", tokens)
    for part, cut_at in ((tokens[:5], "end"), (tokens[4:], "start")):
        cut = Sequence("", part).cut_from(whole)
        assert (cut.n_cut, cut.cut_at) == (4, cut_at)
    assert whole.cut_from(whole).n_cut == 0
