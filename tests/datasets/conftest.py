"""What the tests of the datasets share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm.data.datasets import DatasetUtility
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows into `rows.jsonl`."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def util() -> DatasetUtility:
    return DatasetUtility(seed=1, dp_rank=0, dp_size=1, tokenizer=tiny_tokenizer())
