"""A process that measures with others: `python -m reallm.planning.profiling.worker ORDER RESULT`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from reallm.launch.end_with_launcher import end_with_launcher
from reallm.launch.job import Job
from reallm.launch.rank_env import RankEnv
from reallm.launch.worker import run_worker
from reallm.planning.profiling.measure import measure
from reallm.planning.profiling.order import Order
from reallm.planning.profiling.profile import write_profile
from reallm.planning.profiling.progress import ProfileProgress

TIMEOUT = timedelta(minutes=10)


def main(order_file: Path, result: Path) -> NoReturn:
    """Measure what a file orders; rank 0 writes the profile."""
    env = RankEnv.from_environment(os.environ)
    assert env is not None

    def work(job: Job) -> bool:
        order = Order.read(order_file)
        device = torch.device("cuda", job.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        with job.process_groups(device, TIMEOUT), ProfileProgress() as progress:
            advance = progress.advance if job.is_rank0 else lambda what, share: None
            profile = measure(order.models, device, order.sizes, seconds=order.seconds, advance=advance)
            if job.is_rank0:
                write_profile(result, profile)
        return False

    run_worker(env, work, lambda folder: "")


if __name__ == "__main__":
    end_with_launcher()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
