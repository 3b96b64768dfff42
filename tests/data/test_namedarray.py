"""NamedArray: a value type for named tensors, and the functions over its structure."""

import copy
import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reallm.data.namedarray import (
    FieldError,
    NamedArray,
    flatten,
    from_dict,
    from_flattened,
    merge,
    recursive_aggregate,
    recursive_apply,
    split,
)
from reallm.errors import DataError, ReallmError


@pytest.fixture
def batch() -> NamedArray:
    """Two samples; the second has two sequences of tokens and a score for each."""
    return from_dict(
        {
            "input_ids": torch.arange(10),
            "scores": np.array([0.5, 1.5, 2.5], dtype=np.float32),
            "critic": {"values": torch.arange(10.0), "mask": None},
            "reward": None,
        },
        {
            "seqlens": {"input_ids": [[5], [3, 2]], "scores": [[1], [1, 1]], "critic": [[5], [3, 2]]},
            "ids": ["a", "b"],
            "source": "train.jsonl",
        },
    )


# Fields


def test_fields_are_read_by_key_and_by_attribute(batch: NamedArray) -> None:
    assert batch["input_ids"] is batch.input_ids
    assert batch.critic.values is batch["critic"]["values"]
    assert batch.reward is None
    assert list(batch) == list(batch.keys()) == ["input_ids", "scores", "critic", "reward"]
    assert dict(**batch) == dict(batch.items())
    assert len(batch) == 4
    assert "scores" in batch
    assert "values" not in batch
    assert "scores" in dir(batch)


def test_a_missing_field_is_named_with_the_nearest_one(batch: NamedArray) -> None:
    expected = "^no field 'input_id'; did you mean 'input_ids'\\?; fields: input_ids, scores, critic, reward$"
    for wanted in (FieldError, KeyError, ReallmError):
        with pytest.raises(wanted, match=expected):
            batch["input_id"]
    with pytest.raises(AttributeError, match=expected):
        _ = batch.input_id
    assert not hasattr(batch, "logprobs")


def test_fields_cannot_be_set(batch: NamedArray) -> None:
    with pytest.raises(AttributeError, match="field 'reward'.*with_fields"):
        batch.reward = torch.zeros(2)
    with pytest.raises(AttributeError, match="field 'reward'"):
        del batch.reward
    with pytest.raises(TypeError, match="field 'reward'.*with_fields"):
        batch["reward"] = torch.zeros(2)


def test_with_fields_adds_and_replaces_in_a_copy(batch: NamedArray) -> None:
    changed = batch.with_fields(reward=torch.ones(2), critic=None)
    assert changed.reward.tolist() == [1, 1]
    assert changed.critic is None
    assert changed.metadata == batch.metadata
    assert batch.reward is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": [1, 2]}, "field 'x' is a list; wanted: torch tensor, numpy array, NamedArray or None"),
        ({"x": {"y": torch.zeros(1)}}, "field 'x' is a dict; .*from_dict nests dicts"),
        ({"x": np.array(["a"])}, "field 'x' is a numpy array of <U1; only numbers"),
        ({"x": np.array([object()])}, "field 'x' is a numpy array of object"),
        ({"keys": torch.zeros(1)}, "field 'keys': NamedArray has a method of that name"),
        ({"a.b": torch.zeros(1)}, "field 'a.b': a name is a string without dots"),
        ({"": torch.zeros(1)}, "field '': a name is"),
        ({"_fields": torch.zeros(1)}, "field '_fields': a name is"),
    ],
)
def test_a_field_that_cannot_be_one_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NamedArray(**fields)


def test_a_nested_field_is_refused_by_its_dotted_name() -> None:
    with pytest.raises(DataError, match=r"field 'a\.b\.c' is a str"):
        from_dict({"a": {"b": {"c": "text"}}})


def test_repr_shows_samples_dtypes_and_shapes(batch: NamedArray) -> None:
    assert repr(batch) == (
        "NamedArray(2 samples, input_ids=int64[10], scores=numpy float32[3],"
        " critic=NamedArray(values=float32[10], mask=None), reward=None)"
    )
    assert repr(NamedArray()) == "NamedArray()"
    assert repr(NamedArray(x=torch.zeros(2, device="meta"))) == "NamedArray(x=float32[2] on meta)"


def test_equality_is_that_of_names_kinds_dtypes_values_and_metadata() -> None:
    x = NamedArray(a=torch.tensor([1.0, float("nan")]), b=np.arange(2), c=None)
    assert x == NamedArray(c=None, b=np.arange(2), a=torch.tensor([1.0, float("nan")]))
    assert x != x.with_fields(a=torch.tensor([1.0, 2.0]))
    assert x != x.with_fields(a=x.a.double())
    assert x != x.with_fields(a=x.a.numpy())
    assert x != x.with_fields(b=np.arange(3))
    assert x != x.with_fields(c=torch.zeros(1))
    assert x != x.with_fields(d=None)
    assert x != x.with_metadata(ids=["0", "1"])
    assert x != {"a": x.a}
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


# Metadata


def test_metadata_cannot_be_changed(batch: NamedArray) -> None:
    assert batch.metadata["seqlens"]["input_ids"] == ((5,), (3, 2))
    assert batch.metadata["ids"] == ("a", "b")
    with pytest.raises(TypeError):
        batch.metadata["ids"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        batch.metadata["seqlens"]["scores"] = ()
    with pytest.raises(AttributeError):
        batch.metadata = {}  # type: ignore[misc]


def test_metadata_given_is_copied() -> None:
    ids = ["a"]
    x = NamedArray().with_metadata(ids=ids, origin={"epoch": np.int64(3)})
    ids.append("b")
    assert x.metadata["ids"] == ("a",)
    assert type(x.metadata["origin"]["epoch"]) is int


def test_with_metadata_replaces_items_and_removes_those_of_none(batch: NamedArray) -> None:
    changed = batch.with_metadata(source=None, ids=["c", "d"])
    assert set(changed.metadata) == {"seqlens", "ids"}
    assert changed.metadata["ids"] == ("c", "d")
    assert changed.input_ids is batch.input_ids


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"seqlens": {"a": [[5], [3]]}}, r"field 'a' is int64\[7\], but the seqlens of 'a' sum to 8"),
        ({"seqlens": {"c": [[2], [5]]}}, r"field 'c\.d' is float32\[6\], but the seqlens of 'c' sum to 7"),
        ({"seqlens": {"n": [[1]]}}, r"field 'n' is int64\[\], but the seqlens of 'n' sum to 1"),
        ({"seqlens": {"aa": [[7]]}}, "seqlens of 'aa': no such field"),
        ({"seqlens": {"a": [[7]], "b": [[3], [4]]}}, "seqlens of 'b': 2 samples, but seqlens of 'a': 1"),
        ({"seqlens": {"a": [[7]]}, "ids": ["x", "y"]}, "ids: 2 samples, but seqlens of 'a': 1"),
        ({"seqlens": {"a": [5, 2]}}, r"seqlens of 'a' must hold, for each sample, .* found \[5, 2\]"),
        ({"seqlens": {"a": [[8], [-1]]}}, "seqlens of 'a' holds a negative length"),
        ({"seqlens": [[7]]}, "seqlens must be a mapping from field to lengths, not a list"),
        ({"ids": [1, 2]}, "metadata 'ids' must be one string for each sample"),
        ({"columns": {"answer": 1}}, "metadata 'columns' must be one mapping for each sample"),
        ({"columns": [{}, 1]}, "metadata 'columns' must be one mapping for each sample"),
        ({"groups": ["0"]}, "metadata 'groups' must be one integer for each sample"),
        ({"groups": 3}, "metadata 'groups' must be one integer for each sample, not 3"),
        ({"ids": ["a"], "columns": [{}, {}]}, "columns: 2 samples, but ids: 1"),
        ({"info": {"x": torch.zeros(1)}}, r"metadata 'info'\['x'\] holds a Tensor"),
        ({"info": {1: 2}}, "metadata 'info': key 1 is an int, not a str"),
    ],
)
def test_metadata_that_contradicts_is_refused_by_name(items: dict, message: str) -> None:
    x = from_dict({"a": torch.arange(7), "b": np.zeros(7), "c": {"d": torch.zeros(6)}, "n": torch.tensor(1)})
    with pytest.raises(DataError, match=message):
        x.with_metadata(**items)


def test_only_the_outermost_has_metadata(batch: NamedArray) -> None:
    with pytest.raises(DataError, match="field 'inner': .* nest x.with_metadata\\(seqlens=None, ids=None, source=None"):
        NamedArray(inner=batch)


# Structure


def test_flatten_lists_dotted_names_in_order(batch: NamedArray) -> None:
    names = [name for name, _ in flatten(batch)]
    assert names == ["input_ids", "scores", "critic.values", "critic.mask", "reward"]


quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
names = st.sampled_from(["a", "b", "c", "prompt-ids", "π"])
leaves = st.one_of(
    st.none(),
    st.integers(0, 3).map(torch.arange),
    st.integers(0, 3).map(lambda n: np.ones((n, 2), dtype=np.float16)),
)
trees = st.recursive(st.dictionaries(names, leaves), lambda inner: st.dictionaries(names, leaves | inner), max_leaves=9)


@quick
@given(trees)
def test_from_flattened_is_the_inverse_of_flatten(tree: dict) -> None:
    x = from_dict(tree, {"source": ["s", 1, None]})
    again = from_flattened(flatten(x), x.metadata)
    assert again == x
    assert [name for name, _ in flatten(again)] == [name for name, _ in flatten(x)]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("a", None), ("a", None)], "field 'a' is given twice"),
        ([("a", None), ("a.b", None)], r"field 'a\.b': 'a' is a field already"),
        ([("a.b", None), ("a", None)], "field 'a' is given twice"),
        ([("a", {"b": None})], "field 'a' is a mapping; give each of its fields"),
        ([("a..b", None)], "without dots"),
    ],
)
def test_from_flattened_refuses_names_that_clash(items: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_flattened(items)


@quick
@given(trees, st.lists(names, unique=True), st.integers(0, 3))
def test_merge_is_the_inverse_of_split(tree: dict, chosen: list[str], cut: int) -> None:
    x = from_dict(tree, {"ids": ["a", "b"]})
    present = [name for name in chosen if name in x]
    groups = [present[:cut], present[cut:]]
    parts = split(x, groups)
    assert [list(part) for part in parts[:-1]] == groups
    assert merge(parts) == x
    assert merge(split(x)) == x


def test_split_takes_metadata_along(batch: NamedArray) -> None:
    tokens, rest = split(batch, [["input_ids"]])
    assert tokens.metadata == {"seqlens": {"input_ids": ((5,), (3, 2))}, "ids": ("a", "b"), "source": "train.jsonl"}
    assert list(rest.metadata["seqlens"]) == ["scores", "critic"]
    assert [list(part) for part in split(batch)] == [["input_ids"], ["scores"], ["critic"], ["reward"]]
    assert merge(split(batch)) == batch


def test_split_and_merge_name_the_field_that_is_wrong(batch: NamedArray) -> None:
    with pytest.raises(FieldError, match="no field 'score'; did you mean 'scores'"):
        split(batch, [["score"]])
    with pytest.raises(DataError, match="field 'scores' is named twice"):
        split(batch, [["scores"], ["scores"]])
    with pytest.raises(DataError, match="cannot merge: field 'scores' is in more than one part"):
        merge([batch, NamedArray(scores=None)])
    with pytest.raises(DataError, match="metadata 'ids' differs between the parts"):
        merge([batch, NamedArray(x=None).with_metadata(ids=["a", "c"])])
    with pytest.raises(DataError, match="seqlens of 'x': 3 samples, but seqlens of 'input_ids': 2"):
        merge([batch, NamedArray(x=torch.zeros(3)).with_metadata(seqlens={"x": [[1]] * 3})])


def test_recursive_apply_reaches_every_array_and_keeps_metadata(batch: NamedArray) -> None:
    doubled = recursive_apply(batch, lambda array: array * 2)
    assert doubled.critic.values.tolist() == list(range(0, 20, 2))
    assert doubled.scores.tolist() == [1, 3, 5]
    assert doubled.reward is None
    assert doubled.metadata == batch.metadata
    with pytest.raises(DataError, match=r"field 'input_ids' is int64\[\], but the seqlens"):
        recursive_apply(batch, lambda array: array.sum())


def test_an_error_in_recursive_apply_names_the_field(batch: NamedArray) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        recursive_apply(batch, lambda array: array if array.shape[0] > 3 else 1 // 0)
    assert caught.value.__notes__ == ["in field 'scores' of a NamedArray"]


def test_recursive_aggregate_reaches_every_array() -> None:
    xs = [from_dict({"a": torch.full((2,), i), "b": {"c": np.full(1, i)}, "d": None, "e": {}}) for i in range(3)]
    stacked = recursive_aggregate(
        xs, lambda parts: torch.stack(parts) if torch.is_tensor(parts[0]) else np.stack(parts)
    )
    assert stacked.a.shape == (3, 2)
    assert stacked.b.c.tolist() == [[0], [1], [2]]
    assert stacked.d is None
    assert stacked.e == NamedArray()
    assert recursive_aggregate([], torch.stack) == NamedArray()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(1)}, r"field 'b\.c' is in NamedArray 0 but not in 1"),
        ({"a": torch.zeros(1), "b": {"c": torch.zeros(1)}, "z": None}, "field 'z' is in NamedArray 1 but not in 0"),
        ({"a": None, "b": {"c": torch.zeros(1)}}, r"field 'a' is float32\[1\] in NamedArray 0, None in 1"),
    ],
)
def test_recursive_aggregate_names_the_field_where_structures_differ(other: dict, message: str) -> None:
    first = from_dict({"a": torch.zeros(1), "b": {"c": torch.zeros(1)}})
    with pytest.raises(DataError, match=message):
        recursive_aggregate([first, from_dict(other)], torch.cat)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda batch: recursive_apply(batch, None), "fn must be a function of an array, not None"),
        (lambda batch: recursive_aggregate([batch], None), "aggregate_fn must be a function of an array, not None"),
        (lambda batch: recursive_apply(None, abs), "a NamedArray is needed, not None; from_dict makes one"),
        (lambda batch: recursive_aggregate(batch, torch.stack), "a list of NamedArrays is needed, not a NamedArray"),
        (lambda batch: recursive_aggregate([batch, 3], torch.stack), "a NamedArray is needed, not an int"),
        (lambda batch: merge(batch), "a list of NamedArrays is needed, not a NamedArray"),
        (lambda batch: from_flattened(None), "a list of names and values, as from flatten, is needed, not None"),
        (lambda batch: batch.to("gpu"), "device='gpu' is not a device"),
        (lambda batch: batch.to(None), "device must be a torch.device or its name"),
    ],
)
def test_wrong_arguments_are_named(batch: NamedArray, call: Any, said: str) -> None:
    with pytest.raises(ReallmError, match=said):
        call(batch)


# Indexing, arithmetic, moving


@pytest.mark.parametrize(
    "at",
    [1, -1, slice(1, 3), slice(None, None, 2), [2, 0], torch.tensor([2, 0]), np.array([True, False, True])],
    ids=repr,
)
def test_indexing_is_along_dim_0_of_every_array(at) -> None:
    x = from_dict({"a": torch.arange(6).view(3, 2), "b": {"c": np.arange(3)}, "d": None}, {"source": "s"})
    cut = x[at]
    numpy_at = at.numpy() if isinstance(at, torch.Tensor) else at
    assert np.array_equal(cut.a.numpy(), np.arange(6).reshape(3, 2)[numpy_at])
    assert isinstance(cut.b.c, np.ndarray)
    assert np.array_equal(cut.b.c, np.arange(3)[numpy_at])
    assert cut.d is None
    assert cut.metadata == {"source": "s"}


def test_indexing_that_cannot_be_names_the_field() -> None:
    x = from_dict({"a": torch.arange(6), "b": {"c": np.arange(3)}})
    with pytest.raises(DataError, match=r"field 'b\.c' \(numpy int64\[3\]\) cannot be indexed with 4"):
        x[4]
    with pytest.raises(DataError, match="field 'a' .* only dim 0"):
        x[0, 0]  # type: ignore[index]


def test_a_packed_batch_is_not_cut_through_its_samples(batch: NamedArray) -> None:
    with pytest.raises(DataError, match=r"a batch with seqlens is not indexed by elements: use batching.select"):
        batch[:3]


def test_arithmetic_between_namedarrays() -> None:
    x = from_dict({"a": torch.tensor([1.0, 2.0]), "b": {"c": np.array([4.0])}, "d": None, "e": {}}, {"source": "s"})
    y = (x + x) * x / x - x
    assert y == x
    assert (x**x).a.tolist() == [1, 4]
    assert (x // x).b.c.tolist() == [1]
    assert (x % x).a.tolist() == [0, 0]
    assert (-x).a.tolist() == [-1, -2]


def test_arithmetic_with_numbers_and_arrays_from_either_side() -> None:
    x = NamedArray(a=torch.tensor([1.0, 2.0]), n=None)
    assert (x + 1).a.tolist() == (1 + x).a.tolist() == [2, 3]
    assert (1 - x).a.tolist() == [0, -1]
    assert (2 / x).a.tolist() == [2, 1]
    assert (2**x).a.tolist() == [2, 4]
    assert (3 // x).a.tolist() == [3, 1]
    assert (3 % x).a.tolist() == [0, 1]
    assert (torch.tensor(3.0) * x).a.tolist() == (x * torch.tensor(3.0)).a.tolist() == [3, 6]
    y = NamedArray(a=np.array([1.0, 2.0]))
    assert isinstance(np.ones(2) + y, NamedArray)
    assert (np.float64(3) * y).a.tolist() == (y * np.array([3.0, 3.0])).a.tolist() == [3, 6]
    with pytest.raises(TypeError):
        x + "text"


def test_arithmetic_that_cannot_be_names_the_field() -> None:
    x = from_dict({"a": torch.zeros(2), "b": {"c": torch.zeros(3)}})
    with pytest.raises(DataError, match=r"field 'b\.c': The size of tensor a \(3\) must match"):
        x + from_dict({"a": torch.zeros(2), "b": {"c": torch.zeros(4)}})
    with pytest.raises(DataError, match=r"field 'a': cannot combine float32\[2\] with numpy float64\[2\]"):
        x + np.zeros(2)
    with pytest.raises(DataError, match=r"field 'b\.c' is in NamedArray 0 but not in 1"):
        x + NamedArray(a=torch.zeros(2))
    with pytest.raises(DataError, match="metadata 'ids' differs between the operands"):
        x.with_metadata(ids=["a"]) + x.with_metadata(ids=["b"])


def test_to_casts_floating_point_fields_only() -> None:
    x = from_dict({"ids": torch.arange(2), "a": torch.zeros(2), "b": {"c": np.zeros(2), "n": np.arange(2)}, "d": None})
    y = x.to(torch.float16)
    assert (y.ids.dtype, y.a.dtype, y.b.c.dtype, y.b.n.dtype) == (torch.int64, torch.float16, np.float16, np.int64)
    assert x.to("float16") == y
    with pytest.raises(DataError, match=r"field 'b\.c': numpy has no bfloat16"):
        x.to(torch.bfloat16)


def test_to_moves_tensors_between_devices(batch: NamedArray) -> None:
    moved = batch.to("meta", torch.float64)
    assert moved.critic.values.device.type == "meta"
    assert moved.critic.values.dtype == torch.float64
    assert isinstance(moved.scores, np.ndarray)
    assert moved.metadata == batch.metadata
    assert batch.to("cpu") == batch


# Between processes


def test_copies_are_equal(batch: NamedArray) -> None:
    deep = copy.deepcopy(batch)
    assert deep == copy.copy(batch) == batch
    assert deep.input_ids is not batch.input_ids


class Packed(torch.utils.data.Dataset):
    """Samples made in a data-loader's worker."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> NamedArray:
        x = from_dict({"a": torch.full((i,), i), "b": {"c": np.full(i, 0.5)}, "d": None})
        return x.with_metadata(seqlens={"a": [[i]], "b": [[i]]}, ids=[str(i)])


def test_it_comes_back_from_spawned_workers_of_a_data_loader() -> None:
    context = multiprocessing.get_context("spawn")
    loader = torch.utils.data.DataLoader(Packed(), batch_size=None, num_workers=1, multiprocessing_context=context)
    assert list(loader) == [Packed()[i] for i in range(3)]
