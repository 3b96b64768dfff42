"""The check of an algorithm on two processes, in each layout."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

from reallm_devkit.testing.algorithms.gradients import cut
from reallm_devkit.testing.algorithms.ranks import RankError, run_on_two_ranks
from reallm_devkit.testing.algorithms.runs import same_twice
from reallm_devkit.testing.algorithms.subject import AlgorithmSubject, read_lines
from reallm_devkit.testing.checks import CheckFailed, Skipped, check

LAYOUTS = {"dp2": "parallel.dp=2", "tp2": "parallel.tp=2", "pp2": "parallel.pp=2"}
"""Name of a layout -> the setting that chooses it."""
STEPS = 2
TOLERANCE = 1e-3
"""Of metrics: sums in another order, and what an optimizer step makes of them."""


@check(needs=[cut, same_twice])
def layouts(subject: AlgorithmSubject) -> str:
    """on two processes, whatever the layout, training gives the same losses and norms of gradients"""
    one = subject.run("one", max_steps=STEPS)
    arguments = {
        layout: subject.arguments_with(f"name={layout}", f"max_steps={STEPS}", setting)
        for layout, setting in LAYOUTS.items()
    }
    runs, role = Path(subject.config.output_dir), subject.graph.train_calls[0].role
    look_at = subject.at(role, "loss")
    try:
        run_on_two_ranks(subject.spec, subject.title, arguments, subject.folder.path)
    except pickle.PicklingError as error:
        raise Skipped(
            f"other processes cannot import it ({error}); put its functions and classes into modules"
        ) from error
    except RankError as error:
        raise CheckFailed("the run of one process", str(error), f"layout {error.layout}", look_at) from error
    for layout in LAYOUTS:
        for line, other in zip(read_lines(one), read_lines(runs / layout), strict=True):
            for name, value in line.items():
                found = other.get(name, math.nan)
                if not math.isclose(found, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                    expected = (
                        "the numbers of one process: sums in `loss`, tensors on the device of the network, and "
                        "the same decisions on all ranks"
                    )
                    seen = f"'{name}' is {found:.6g} instead of {value:.6g}"
                    raise CheckFailed(expected, seen, f"layout {layout}, step {line['step']:.0f}", look_at)
    return f"{', '.join(LAYOUTS)}: {STEPS} steps"
