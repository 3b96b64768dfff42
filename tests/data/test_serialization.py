"""NamedArrays on disk: what was saved comes back, and what is damaged says so in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from reallm.data.metadata import PER_SAMPLE
from reallm.data.namedarray import NamedArray, flatten, from_dict
from reallm.data.serialization import load, save
from reallm.errors import DataError

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

TORCH_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    torch.bool,
]
NUMPY_DTYPES = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "e", "f", "d", "F"]  # numpy's letters for them

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
tensors = st.tuples(shapes, st.sampled_from(TORCH_DTYPES)).map(
    lambda x: torch.arange(np.prod(x[0])).to(x[1]).view(x[0])
)
arrays = st.sampled_from(NUMPY_DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
leaves = st.none() | tensors | arrays
names = st.text(st.characters(categories=("L", "N", "S", "Zs")), min_size=1, max_size=5)
fields = names.filter(lambda name: not hasattr(NamedArray, name))
trees = st.recursive(
    st.dictionaries(fields, leaves, max_size=3), lambda t: st.dictionaries(fields, leaves | t), max_leaves=6
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@quick
@given(trees, st.dictionaries(st.text().filter(lambda name: name not in PER_SAMPLE), plain, max_size=3))
def test_load_gives_what_was_saved(tmp_path_factory: pytest.TempPathFactory, tree: dict, metadata: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "batch.safetensors"
    batch = from_dict(tree, metadata)
    save(batch, path)
    loaded = load(path)
    assert loaded == batch
    assert [name for name, _ in flatten(loaded)] == [name for name, _ in flatten(batch)]


def test_seqlens_and_ids_come_back_as_they_were(tmp_path: Path) -> None:
    batch = NamedArray(x=torch.arange(3)).with_metadata(seqlens={"x": [[1], [2, 0]]}, ids=["ä", "b"])
    save(batch, tmp_path / "b")
    assert load(tmp_path / "b").metadata == {"seqlens": {"x": ((1,), (2, 0))}, "ids": ("ä", "b")}


def test_views_of_one_memory_and_strided_arrays_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0, requires_grad=True)
    frozen = np.arange(6)[::-2]
    frozen.flags.writeable = False
    batch = NamedArray(all=base, half=base[:6], turned=base.view(3, 4).T, again=base, numpy=frozen)
    save(batch, tmp_path / "b")
    assert load(tmp_path / "b") == batch
    assert not load(tmp_path / "b").all.requires_grad


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    save(NamedArray(x=torch.zeros(2)), tmp_path / "new" / "b")
    with pytest.raises(DataError, match=r"field 'y': complex128\[2\] cannot be saved"):
        save(NamedArray(x=torch.ones(2), y=torch.zeros(2, dtype=torch.complex128)), tmp_path / "new" / "b")
    assert load(tmp_path / "new" / "b").x.tolist() == [0, 0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]


def test_a_numpy_dtype_without_a_place_in_the_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'a\.b': numpy complex128\[1\] cannot be saved"):
        save(from_dict({"a": {"b": np.zeros(1, dtype=np.complex128)}}), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def one_line(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "b"
    save(NamedArray(x=torch.arange(100), y=None).with_metadata(ids=["a"]), path)
    content = path.read_bytes()
    for size in (0, 5, 8, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert one_line(path).startswith(" is not a readable safetensors file (")


@quick
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_gives_an_error_or_a_batch(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    save(from_dict({"x": torch.arange(3), "y": {"z": np.zeros(2)}}, {"seqlens": {"x": [[3]]}}), path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        outcome: NamedArray | str = load(path)
    except DataError as error:
        outcome = str(error)
    assert isinstance(outcome, NamedArray) or (outcome.startswith(f"{path}") and "\n" not in outcome)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert one_line(tmp_path / "b") == ": no such file"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "a safetensors file, but not of a NamedArray"),
        ("no json", "damaged header (Expecting value"),
        ("[1]", "damaged header ("),
        ("[" * 100_000, "damaged header ("),
        ({"version": 2, "fields": [["x", "torch"]], "metadata": {}}, "format version 2; this reallm reads version 1"),
        ({"version": 1, "fields": [["x", "torch"]]}, "damaged header (there is no 'metadata')"),
        ({"version": 1, "fields": [], "metadata": {}}, "field 'x' is not listed"),
        ({"version": 1, "fields": [["x", "torch"], ["y", "numpy"]], "metadata": {}}, "field 'y' has no array"),
        ({"version": 1, "fields": [["x", "pickle"]], "metadata": {}}, "field 'x' is of unknown kind 'pickle'"),
        ({"version": 1, "fields": [["x", "torch"]], "metadata": {"seqlens": {"x": [[1]]}}}, "seqlens of 'x' sum to 1"),
    ],
)
def test_a_header_that_does_not_fit_says_why(tmp_path: Path, header: object, message: str) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"x": torch.zeros(2)}, tmp_path / "b", {"reallm.namedarray": text} if header else None)
    assert message in one_line(tmp_path / "b")


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save(from_dict({"a": {"b": torch.arange(2)}, "c": None}), tmp_path / "b")
    with safetensors.safe_open(tmp_path / "b", framework="np") as file:
        assert list(file.keys()) == ["a.b"]
        assert file.get_tensor("a.b").tolist() == [0, 1]
