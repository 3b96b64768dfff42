"""All that is run with faults, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.helpers.io_faults.command_scenarios import (
    answering,
    comparing,
    drawing_a_graph,
    evaluating,
    generating,
    listing,
    making_a_plugin,
    merging,
    planning,
    planning_as_measured,
    previewing,
    pushing,
    reallocating,
    serving,
    verifying,
)
from tests.helpers.io_faults.sweep import Scenario
from tests.helpers.io_faults.training_scenarios import (
    reading_compressed,
    resuming,
    resuming_rewarding,
    rewarding,
    scoring_ahead,
    training,
)

SCENARIOS: Mapping[str, Callable[[Path], Scenario]] = {
    "training": training,
    "training, saves waited for": lambda inputs: training(inputs, "async_save=false", "loggers=[jsonl,tensorboard]"),
    "resuming": resuming,
    "generating": generating,
    "verifying": lambda inputs: verifying(inputs / "adapted"),
    "resuming rewarding": lambda inputs: resuming_rewarding(inputs, "async_steps=1"),
    "answering": answering,
    "comparing": comparing,
    "compressed": reading_compressed,
    "evaluating": evaluating,
    "merging": merging,
    "previewing": previewing,
    "rewarding": rewarding,
    "scoring ahead": scoring_ahead,
    "drawing a graph": drawing_a_graph,
    "listing": listing,
    "making a plugin": making_a_plugin,
    "planning": planning,
    "planning as measured": planning_as_measured,
    "pushing": pushing,
    "reallocating": reallocating,
    "serving": serving,
}
"""All scenarios, by name, each made from the inputs; for the tests and for `benchmarks/faults.py`."""
