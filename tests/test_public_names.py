"""`import reallm`: what is public is listed, can be imported, and costs nothing until it is used."""

from __future__ import annotations

import reallm
from tests.helpers.imports import imported_by


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    listed = dir(reallm)
    assert set(reallm.__all__) <= set(listed)
    assert {"TrainEngine", "SFTInterface", "gather", "run", "make_dataset"} <= set(listed)
    assert not {"importlib", "annotations", "TYPE_CHECKING", "Any", "did_you_mean", "errors"} & set(listed)
    assert all(name in reallm.__all__ or name.endswith("Config") for name in listed)


def test_every_public_name_is_there() -> None:
    assert [name for name in dir(reallm) if getattr(reallm, name, None) is None] == []


def test_listing_imports_nothing_heavy() -> None:
    program = "import reallm; dir(reallm); reallm.SFTConfig; reallm.OptimizerConfig; reallm.__version__"
    assert imported_by(program, "torch", "transformers") == []
