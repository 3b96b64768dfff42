"""Fields that are added to samples, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.data.sample_fields import (
    SampleField,
    SamplesWithFields,
    load_fields,
    save_fields,
    sources_of,
    with_fields,
)
from reallm.errors import DataError


class Numbers:
    """Sample `i` has the numbers from 0 to i."""

    def __init__(self, n: int, name: str = "n") -> None:
        self.n, self.name = n, name

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> NamedArray:
        sample = NamedArray(numbers=torch.arange(i + 1))
        return sample.with_metadata(seqlens={"numbers": [[i + 1]]}, ids=[f"{self.name}{i}"])


def scores(n: int) -> SampleField:
    """Sample `i` has `i % 3` sequences of two, all with the number i."""
    rows = list(reversed(range(n)))
    seqlens: list[tuple[int, ...]] = [(2,) * (row % 3) for row in rows]
    values = [torch.full((2 * (row % 3),), float(row)) for row in rows]
    return SampleField.of_batches([torch.cat(values[:2]), torch.cat(values[2:])], seqlens, rows)


def test_batches_in_any_order_give_the_order_of_the_dataset() -> None:
    field = scores(7)
    assert len(field) == 7
    for i in range(7):
        values, lengths = field[i]
        assert lengths == [2] * (i % 3)
        assert values.tolist() == [i] * (2 * (i % 3))


def test_samples_have_the_new_fields() -> None:
    samples = SamplesWithFields(Numbers(5), {"scores": scores(5)})
    assert len(samples) == 5
    assert list(samples[2]) == ["numbers", "scores"]
    assert samples[2].metadata["seqlens"] == {"numbers": ((3,),), "scores": ((2, 2),)}
    assert samples[2].metadata["ids"] == ("n2",)
    assert samples.report() == "5 samples"
    with pytest.raises(IndexError):
        samples[5]


def test_each_source_of_a_mixture_has_its_own() -> None:
    mixed = MixedSamples({"a": Numbers(3, "a"), "b": Numbers(4, "b")}, {"a": 1.0, "b": 2.0})
    assert list(sources_of(mixed)) == ["a", "b"]
    extended = with_fields(mixed, {"a": {"scores": scores(3)}, "b": {"scores": scores(4)}})
    assert isinstance(extended, MixedSamples)
    assert extended.quotas == mixed.quotas
    assert extended[5].metadata["ids"] == ("b/b2",)
    assert extended[5]["scores"].tolist() == [2.0] * 4


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.safetensors"
    save_fields({"scores": scores(5), "more": scores(5)}, path, {"data": "x"})
    fields, about = load_fields(path)
    assert about == {"data": "x"}
    assert list(fields) == ["scores", "more"]
    for i in range(5):
        assert torch.equal(fields["scores"][i][0], scores(5)[i][0])
        assert fields["scores"][i][1] == scores(5)[i][1]


@pytest.mark.parametrize("damage", ["missing", "cut", "byte", "another"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_fields({"scores": scores(5)}, path, {})
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-8])
    elif damage == "byte":
        content[-9] ^= 1
        path.write_bytes(content)
    else:
        torch.save({}, path)
    with pytest.raises(DataError, match=rf"^{path} is damaged \("):
        load_fields(path)
