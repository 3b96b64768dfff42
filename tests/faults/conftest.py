"""The servers of the sweeps of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.io_faults import FaultServer


@pytest.fixture(scope="session")
def servers() -> Iterator[list[FaultServer]]:
    with FaultServer() as one, FaultServer() as other:
        yield [one, other]
