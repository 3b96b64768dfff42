"""All that is run with faults, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.helpers.io_faults import FaultServer
from tests.helpers.io_faults.command_scenarios import (
    drawing_a_graph,
    listing,
    making_a_plugin,
    planning,
    planning_as_measured,
    pushing,
    reallocating,
    serving,
)
from tests.helpers.io_faults.more_scenarios import (
    answering,
    comparing,
    evaluating,
    merging,
    previewing,
    reading_compressed,
    resuming_rewarding,
    rewarding,
    scoring_ahead,
)
from tests.helpers.io_faults.scenarios import generating, resuming, training, verifying
from tests.helpers.io_faults.sweep import Scenario

Make = Callable[[FaultServer, Path, Path], Scenario]
"""Makes a scenario, given a server that nobody else uses meanwhile, the inputs and a folder of its own."""


def _of_inputs(make: Callable[[Path], Scenario]) -> Make:
    return lambda server, inputs, folder: make(inputs)


SCENARIOS: Mapping[str, Make] = {
    "training": _of_inputs(training),
    "training, saves waited for": _of_inputs(
        lambda inputs: training(inputs, "async_save=false", "loggers=[jsonl,tensorboard]")
    ),
    "resuming": resuming,
    "generating": _of_inputs(generating),
    "verifying": _of_inputs(lambda inputs: verifying(inputs / "adapted")),
    "resuming rewarding": lambda server, inputs, folder: resuming_rewarding(server, inputs, folder, "async_steps=1"),
    "answering": _of_inputs(answering),
    "comparing": _of_inputs(comparing),
    "compressed": _of_inputs(reading_compressed),
    "evaluating": _of_inputs(evaluating),
    "merging": _of_inputs(merging),
    "previewing": _of_inputs(previewing),
    "rewarding": _of_inputs(rewarding),
    "scoring ahead": _of_inputs(scoring_ahead),
    "drawing a graph": _of_inputs(drawing_a_graph),
    "listing": _of_inputs(listing),
    "making a plugin": _of_inputs(making_a_plugin),
    "planning": _of_inputs(planning),
    "planning as measured": planning_as_measured,
    "pushing": _of_inputs(pushing),
    "reallocating": _of_inputs(reallocating),
    "serving": _of_inputs(serving),
}
"""All scenarios, by name; for the tests and for `benchmarks/faults.py`."""
