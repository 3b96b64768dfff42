"""The servers and the inputs of the sweeps of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.io_faults import FaultServer, has_compiler
from tests.helpers.io_faults.inputs import make_inputs


@pytest.fixture(scope="session")
def servers() -> Iterator[list[FaultServer]]:
    if not has_compiler():
        pytest.skip("needs Linux and cc, which makes the library with the faults")
    with FaultServer() as one, FaultServer() as other:
        yield [one, other]


@pytest.fixture(scope="module")
def inputs_of_scenarios(servers: list[FaultServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(servers, tmp_path_factory.mktemp("faults").resolve() / "inputs")


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line about the test to the terminal while it runs."""
    manager = request.config.pluginmanager
    terminal, capture = manager.get_plugin("terminalreporter"), manager.get_plugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"{request.node.name}: {line}")

    return show
