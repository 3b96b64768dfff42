"""One part of a run, as a process of its own: `part_of_a_run.py LOGGER RUN_DIR FIRST LAST [RESUME_STEP]`.

Trains at each step from FIRST to LAST, evaluates at each second, and ends, as after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reallm.experiments.run.loggers import Loggers, logger_specs


def main(name: str, run_dir: Path, first: int, last: int, resume_step: int | None = None) -> None:
    config = {"name": None, "optimizer": {"lr": 1e-3}, "loggers": [name]}
    loggers = Loggers(logger_specs([name]), run_dir, config, print, resume_step)
    for step in range(first, last + 1):
        loggers.log(step, {"train/loss": 1 / step, "train/grad_norm": float("nan")})
        if step % 2 == 0:
            loggers.log(step, {"eval/loss": 2 / step})
    loggers.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
