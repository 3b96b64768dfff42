"""Packing samples into a batch and taking them out again, for fields of any name."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reallm.data.batching import cu_seqlens, gather, lengths, n_samples, partition, select, split_groups, split_samples
from reallm.data.namedarray import FieldError, NamedArray, flatten, from_dict
from reallm.errors import ConfigError, DataError

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

KINDS = {
    "tokens": lambda n: torch.arange(n),
    "mask": lambda n: torch.arange(n) % 2 == 0,
    "rows": lambda n: torch.full((n, 2, 3), 0.5, dtype=torch.bfloat16),
    "numpy": lambda n: np.arange(n, dtype=np.int16),
    "nested": lambda n: {"values": torch.ones(n), "deeper": {"x": np.zeros((n, 1)), "none": None}},
    "none": lambda n: None,
}


@st.composite
def sample_lists(draw: st.DrawFn, min_size: int = 1) -> list[NamedArray]:
    """Samples with the same arbitrary fields, each with some sequences of each field, which may be empty."""
    names = st.text(st.characters(categories=("L", "N"), include_characters="-"), min_size=1, max_size=4)
    fields = draw(st.dictionaries(names.filter(lambda n: not hasattr(NamedArray, n)), st.sampled_from(list(KINDS))))
    n = draw(st.integers(min_size, 4))
    samples = []
    for i in range(n):
        owned = {name: draw(st.lists(st.integers(0, 4), max_size=3)) for name in fields}
        values = {name: KINDS[kind](sum(owned[name])) for name, kind in fields.items()}
        per_sample = {"ids": [str(i)], "groups": [i // 2], "columns": [{"answer": i, "parts": [{"of": "it"}]}]}
        samples.append(from_dict(values, {"seqlens": {k: [v] for k, v in owned.items()}, **per_sample, "s": 1}))
    return samples


@quick
@given(sample_lists())
def test_gather_then_split_is_the_identity(samples: list[NamedArray]) -> None:
    batch = gather(samples)
    assert n_samples(batch) == len(samples)
    assert split_samples(batch) == samples


@quick
@given(sample_lists())
def test_split_then_gather_is_the_identity(samples: list[NamedArray]) -> None:
    batch = gather(samples)
    assert gather(split_samples(batch)) == batch
    assert gather([gather(samples[:2]), *samples[2:]]) == batch


@quick
@given(sample_lists(), st.data())
def test_select_takes_samples_in_the_order_asked_for(samples: list[NamedArray], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(samples) - 1)))
    selected = select(gather(samples), indices)
    assert split_samples(selected) == [samples[i] for i in indices]
    assert [name for name, _ in flatten(selected)] == [name for name, _ in flatten(samples[0])]


@quick
@given(sample_lists(min_size=2), st.integers(1, 5), st.data())
def test_partition_gives_each_sample_to_one_rank(samples: list[NamedArray], k: int, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*samples[0], "absent"]))
    batch = gather(samples)
    if key == "absent":
        with pytest.raises(FieldError, match="no seqlens of 'absent'"):
            partition(batch, key, k)
        return
    parts = partition(batch, key, k)
    assert len(parts) == k
    assert sorted(i for part in parts for i in part.metadata["ids"]) == [str(i) for i in range(len(samples))]
    assert sum(sum(lengths(part, key)) for part in parts) == sum(lengths(batch, key))
    if k <= len(samples):
        assert all(n_samples(part) for part in parts)


def test_partition_balances_the_elements_of_the_key_it_is_given() -> None:
    sizes = {"long": [90, 10, 20, 80], "short": [1, 9, 2, 8]}
    arrays = {name: torch.zeros(sum(owned)) for name, owned in sizes.items()}
    batch = from_dict(arrays, {"seqlens": {name: [[n] for n in owned] for name, owned in sizes.items()}})
    assert [sum(lengths(part, "long")) for part in partition(batch, "long", 2)] == [100, 100]
    assert [sum(lengths(part, "short")) for part in partition(batch, "short", 2)] == [10, 10]


@pytest.fixture
def pair() -> NamedArray:
    return NamedArray(tokens=torch.arange(10), score=torch.ones(2)).with_metadata(
        seqlens={"tokens": [[5], [3, 0, 2]], "score": [[1], [1]]}
    )


@st.composite
def grouped_batches(draw: st.DrawFn) -> tuple[NamedArray, dict[str, int]]:
    """A batch of samples of some units, and the number of sequences of each field in a unit."""
    kinds = draw(st.dictionaries(st.sampled_from("abc"), st.sampled_from(list(KINDS)), min_size=1))
    sequences = {name: draw(st.integers(1, 3)) for name in kinds}
    n_units = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    seqlens: dict[str, list[list[int]]] = {
        name: [draw(st.lists(st.integers(0, 3), min_size=n * size, max_size=n * size)) for n in n_units]
        for name, size in sequences.items()
    }
    fields = {name: KINDS[kind](sum(map(sum, seqlens[name]))) for name, kind in kinds.items()}
    metadata = {"ids": [str(i) for i in range(len(n_units))], "columns": [{"row": i} for i in range(len(n_units))]}
    return from_dict(fields, {"seqlens": seqlens, **metadata, "source": "x"}), sequences


@quick
@given(grouped_batches(), st.data())
def test_units_of_samples_become_samples_of_the_same_arrays(
    drawn: tuple[NamedArray, dict[str, int]], data: st.DataObject
) -> None:
    batch, sequences = drawn
    units = split_groups(batch, sequences)
    parts = split_samples(units)

    first = next(iter(batch))
    assert n_samples(units) == sum(len(sample) // sequences[first] for sample in seqlens_of(batch, first))
    assert all(units[name] is batch[name] for name in batch)
    assert gather(parts) == units if parts else n_samples(units) == 0
    for part in parts:
        (group,), (row,) = part.metadata["groups"], part.metadata["columns"]
        assert part.metadata["ids"] == batch.metadata["ids"][group : group + 1]
        assert row == batch.metadata["columns"][group]
        assert all(len(seqlens_of(part, name)[0]) == size for name, size in sequences.items())
    for group in range(n_samples(batch)):  # the units of a sample, taken together, are the sample
        own = select(units, [i for i, of in enumerate(units.metadata["groups"]) if of == group])
        sample = select(batch, [group])
        assert all(sum(seqlens_of(own, name), ()) == sum(seqlens_of(sample, name), ()) for name in batch)
        assert own.with_metadata(seqlens=None, ids=None, groups=None, columns=None) == sample.with_metadata(
            seqlens=None, ids=None, columns=None
        )
    indices = data.draw(st.lists(st.sampled_from(range(len(parts))))) if parts else []
    assert select(units, indices).metadata["groups"] == tuple(units.metadata["groups"][i] for i in indices)
    assert split_groups(units, sequences) == units


def seqlens_of(batch: NamedArray, key: str) -> tuple[tuple[int, ...], ...]:
    found: tuple[tuple[int, ...], ...] = batch.metadata["seqlens"][key]
    return found


def test_groups_are_those_of_the_first_cut() -> None:
    batch = NamedArray(x=torch.arange(6)).with_metadata(seqlens={"x": [[1, 1, 1, 1], [1, 1]]})
    pairs = split_groups(batch, {"x": 2})
    assert pairs.metadata["groups"] == (0, 0, 1)
    assert split_groups(select(pairs, [2, 0]), {"x": 1}).metadata["groups"] == (1, 1, 0, 0)


def test_samples_that_are_not_made_of_units_are_named(pair: NamedArray) -> None:
    with pytest.raises(DataError, match="say how many sequences of 'score' a unit has"):
        split_groups(pair, {"tokens": 1})
    with pytest.raises(DataError, match="sample 0 has 1 sequences of 'tokens', which is not a multiple of 3"):
        split_groups(pair, {"tokens": 3, "score": 1})
    with pytest.raises(DataError, match="sample 1 has 3 units of 'tokens', but 1 of 'score'"):
        split_groups(pair, {"tokens": 1, "score": 1})
    with pytest.raises(DataError, match="'b' has 3 units of 'tokens', but 1 of 'score'"):
        split_groups(pair.with_metadata(ids=["a", "b"]), {"tokens": 1, "score": 1})
    with pytest.raises(FieldError, match="no seqlens of 'prompts'"):
        split_groups(pair, {"prompts": 1, "tokens": 1, "score": 1})
    with pytest.raises(ConfigError, match=r"sequences\['tokens'\]"):
        split_groups(pair, {"tokens": 0, "score": 1})


def test_lengths_are_per_sample_and_offsets_per_sequence(pair: NamedArray) -> None:
    assert lengths(pair, "tokens") == [5, 5]
    offsets = cu_seqlens(pair, "tokens")
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [0, 5, 8, 8, 10]
    assert cu_seqlens(select(pair, []), "tokens").tolist() == [0]


def test_split_samples_are_views(pair: NamedArray) -> None:
    second = split_samples(pair)[1]
    assert second.tokens.untyped_storage().data_ptr() == pair.tokens.untyped_storage().data_ptr()


def test_samples_without_ids_or_seqlens_cannot_be_told_apart() -> None:
    with pytest.raises(DataError, match=r"cannot separate the samples of NamedArray\(x=float32\[2\]\)"):
        n_samples(NamedArray(x=torch.zeros(2)))
    x = from_dict({"a": torch.zeros(2), "b": {"c": torch.zeros(2)}}, {"seqlens": {"a": [[1], [1]]}})
    for function in (split_samples, lambda x: gather([x]), lambda x: partition(x, "a", 2)):
        with pytest.raises(DataError, match="field 'b' has no seqlens"):
            function(x)


def test_what_is_not_there_is_named(pair: NamedArray) -> None:
    with pytest.raises(FieldError, match="no seqlens of 'token'; did you mean 'tokens'.*seqlens of tokens, score"):
        lengths(pair, "token")
    with pytest.raises(DataError, match="no sample 2 in a batch of 2"):
        select(pair, [0, 2])
    with pytest.raises(DataError, match="no sample -1 in a batch of 2"):
        select(pair, [-1])
    with pytest.raises(DataError, match="cannot gather a batch of no samples"):
        gather([])


def sample(**changes: object) -> NamedArray:
    fields = {"a": torch.zeros(2), "b": {"c": torch.zeros(2, 3)}, "d": None}
    metadata = {"seqlens": {"a": [[2]], "b": [[2]]}, "source": "x"}
    for name, value in changes.items():
        (metadata if name in ("seqlens", "ids", "source") else fields)[name] = value  # type: ignore[index]
    return from_dict(fields, metadata)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sample(a=torch.arange(2)), r"field 'a': cannot join float32\[2\] with int64\[2\] \(number 1\)"),
        (sample(a=np.zeros(2)), r"field 'a': cannot join float32\[2\] with numpy float64\[2\]"),
        (sample(b={"c": torch.zeros(2, 4)}), r"field 'b\.c': cannot join float32\[2, 3\] with float32\[2, 4\]"),
        (sample(d=torch.zeros(1), seqlens={"a": [[2]], "b": [[2]], "d": [[1]]}), "field 'd' is None in NamedArray 0"),
        (sample(e=None), "field 'e' is in NamedArray 1 but not in 0"),
        (sample(ids=["x"]), "metadata 'ids' differs between samples 0 and 1"),
        (sample(source="y"), "metadata 'source' differs between samples 0 and 1"),
        (sample(seqlens={"a": [[2]], "b": [[2]], "d": [[2]]}), "only one of samples 0 and 1 has seqlens of 'd'"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused_by_name(other: NamedArray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gather([sample(), other])
