"""A split by a hash: equal rows on one side, whatever their order, ids and file format."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reallm.data.row import Row
from reallm.data.row_sources import RowSource
from reallm.data.row_split import RowSplit
from reallm.data.rows import iter_rows, read_rows
from reallm.errors import DataError

ROWS = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(2000)]


def side(values: dict[str, Any], fraction: float = 0.5) -> bool:
    return Row("x", "f:1", values) in RowSplit(fraction, is_valid=True)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(path: Any, fraction: float, *, is_valid: bool) -> list[str]:
    return [row.text("prompt") for row in iter_rows(RowSource(path, split=RowSplit(fraction, is_valid)))]


def test_each_row_is_on_one_side_and_about_the_fraction_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    train, valid = (prompts(path, 0.1, is_valid=is_valid) for is_valid in (False, True))
    assert sorted([*train, *valid]) == sorted(row["prompt"] for row in ROWS)
    assert 150 < len(valid) < 250
    assert set(valid) < set(prompts(path, 0.2, is_valid=True))


def test_the_same_rows_whatever_their_order_file_and_neighbours(tmp_path: Path) -> None:
    valid = set(prompts(write(tmp_path / "a.jsonl", ROWS), 0.1, is_valid=True))
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert set(prompts(write(tmp_path / "b.jsonl", shuffled), 0.1, is_valid=True)) == valid
    assert set(prompts(lambda: ROWS[:500], 0.1, is_valid=True)) == valid & {row["prompt"] for row in ROWS[:500]}


def test_equal_rows_are_on_the_same_side() -> None:
    for i, row in enumerate(ROWS[:50]):
        found = side(row)
        assert side({**row, "id": f"row-{i}"}) == found
        assert side(dict(reversed(row.items()))) == found
        assert side({**row, "score": None}) == found
    nested = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "extra": None}]}
    without = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    fractions = [i / 64 for i in range(1, 64)]
    assert [side(nested, fraction) for fraction in fractions] == [side(without, fraction) for fraction in fractions]


def test_a_file_whose_rows_have_other_names_is_split_alike(tmp_path: Path) -> None:
    renamed = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS]
    source = RowSource(write(tmp_path / "b.jsonl", renamed), columns={"prompt": "question"}, split=RowSplit(0.1, True))
    valid = prompts(write(tmp_path / "a.jsonl", ROWS), 0.1, is_valid=True)
    assert [row.text("prompt") for row in iter_rows(source)] == valid


def test_a_wrong_row_is_an_error_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n[1]\n")
    for is_valid in (False, True):
        with pytest.raises(DataError, match=r"a\.jsonl:2: found a list of 1, wanted an object"):
            read_rows(RowSource(path, split=RowSplit(0.5, is_valid)))


def test_halves_of_surrogates_and_values_of_functions_have_a_side() -> None:
    assert side({"prompt": "\ud83d"}) in (True, False)
    assert side({"prompt": "x", "more": {1: object}}) in (True, False)
