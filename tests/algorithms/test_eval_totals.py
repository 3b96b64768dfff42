"""Sums of an evaluation: parts of the data follow one another, numbers of several calls are added."""

from __future__ import annotations

from math import nan

import pytest

from reallm.algorithms.eval_totals import EvalTotals
from reallm.errors import PluginError


def test_numbers_of_several_calls_are_parts_of_a_total() -> None:
    functions = EvalTotals(measured={"reward": [1.0, nan]}) + EvalTotals(measured={"reward": [nan]})
    model = EvalTotals(measured={"reward": [0.5, 2.0, nan], "kl": [0.1]})
    both = EvalTotals.of_calls([functions, model])
    assert both.measured == {"reward": pytest.approx([1.5, 2.0, nan], nan_ok=True), "kl": [0.1]}
    assert both.means() == {"reward": 1.75, "kl": 0.1}
    with pytest.raises(
        PluginError, match="two interfaces measure eval/reward, of 3 and 1 sequences; eval_metrics must"
    ):
        EvalTotals.of_calls([model, EvalTotals(measured={"reward": [1.0]})])
