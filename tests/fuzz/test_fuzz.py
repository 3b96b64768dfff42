"""Mutated files are read, or refused with one line, by everything that reads files of others.

These are some inputs of each reader, always the same. `python benchmarks/fuzz.py` tries others for ten minutes.
"""

from __future__ import annotations

import pytest

from tests.fuzz.readers import READERS
from tests.fuzz.runner import run

N_INPUTS = 60


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused_with_one_line(name: str) -> None:
    found = run(name, READERS[name], seed=1, n_inputs=N_INPUTS)
    assert not found.others, "\n".join(f"{line}\n{text}" for line, text in found.others.items())
    assert not found.n_hangs
    assert found.n_inputs == N_INPUTS
