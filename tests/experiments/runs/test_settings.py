"""Settings of runs: how they are compared."""

from __future__ import annotations

from reallm.experiments.runs.settings import diff


def test_options_of_the_optimizer_that_are_null_have_its_defaults() -> None:
    before = {"optimizer": {"name": "adamw", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}}
    now = {"optimizer": {"name": "adamw", "beta1": None, "beta2": 0.98, "eps": None}}
    assert diff(before, now) == {"optimizer.beta2": (0.95, 0.98)}


def test_a_run_without_the_name_of_its_optimizer_has_the_default_one() -> None:
    before = {"optimizer": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}}
    now = {"optimizer": {"name": "adamw", "beta1": None, "beta2": None, "eps": None}}
    assert diff(before, now, now) == {}
