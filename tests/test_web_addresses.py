"""A web address given as a path keeps its slashes, and is answered with what to write instead."""

from __future__ import annotations

import pytest

from reallm.errors import CheckpointError
from reallm.hf.checkpoint_folder import resolve_path
from reallm.web_addresses import instead_of, is_web_address


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("https://huggingface.co/org/name", "write org/name, the model's id on the hub"),
        ("https://huggingface.co/org/name/tree/main", "write org/name, the model's id on the hub"),
        ("huggingface.co/org/name", "write org/name, the model's id on the hub"),
        ("http://hf.co/org/name", "write org/name, the model's id on the hub"),
        ("https://huggingface.co/datasets/org/name", "it is the page of a dataset"),
        ("https://example.com/model.zip", "download it, and give its path"),
        ("s3://bucket/model", "download it, and give its path"),
    ],
)
def test_a_model_by_its_address(address: str, remedy: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_path(address)
    assert str(caught.value) == f"{address} is a web address, not a folder or an id on the hub; {remedy}"


def test_rows_by_their_address() -> None:
    assert instead_of("https://huggingface.co/datasets/org/rows", dataset=True) == (
        "write hub:org/rows:train, or another split"
    )
    assert instead_of("https://huggingface.co/org/name", dataset=True) == "it is the page of a model"


@pytest.mark.parametrize("path", ["org/name", "./model", "/models/a:b", "hub:org/name:train", "module:function", ""])
def test_other_paths_are_not_addresses(path: str) -> None:
    assert not is_web_address(path)
