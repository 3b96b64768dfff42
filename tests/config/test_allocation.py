"""The key `allocation`: its values, and as many processes as it needs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reallm.config.allocation import layout_of
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError


@dataclass(frozen=True)
class Rows:
    train_path: str = "rows.jsonl"
    train_bs_n_seqs: int = 8
    valid_bs_n_seqs: int = 8


@pytest.mark.parametrize("name", ["manual", "heuristic", "search"])
def test_who_decides(name: str) -> None:
    assert layout_of(name) is None


@pytest.mark.parametrize(
    ("text", "layout"),
    [("d2p2m1", "pp2dp2"), ("m4d2", "tp4dp2"), ("d8", "dp8"), ("dp2tp2", "tp2dp2"), ("fsdp4", "fsdp4")],
)
def test_one_layout_for_all_calls(text: str, layout: str) -> None:
    found = layout_of(text)
    assert found is not None
    assert found.short == layout


@pytest.mark.parametrize("text", ["serach", "d2x2", "d2d2", "d0", ""])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^allocation={text}: must be manual, heuristic, search, or one layout"):
        layout_of(text)


def test_as_many_processes_as_the_layout_takes_are_started() -> None:
    assert TrainingConfig(dataset=Rows(), allocation="d2p2m2").n_processes == 8
