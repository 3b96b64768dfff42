"""The servers and the inputs of the sweeps of faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.more_scenarios import make_more_inputs
from tests.helpers.io_faults.scenarios import make_small_inputs


@pytest.fixture(scope="session")
def servers() -> Iterator[list[FaultServer]]:
    if not has_compiler():
        pytest.skip("needs Linux and cc, which makes the library with the faults")
    with FaultServer() as one, FaultServer() as other:
        yield [one, other]


@pytest.fixture(scope="module")
def inputs_of_scenarios(servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_inputs(tmp_path_factory.mktemp("faults").resolve() / "inputs")
    make_more_inputs(servers[0], folder)
    return folder
