"""Training speed and memory: optimizer steps of reallm against transformers and TRL, on the same data and weights.

The main work: 16 sequences of lognormal lengths (about 2,300 tokens, the longest about 730), 40 % of the tokens carry
loss, a Llama of 40M parameters, float32, AdamW, clipping. Without `--quick` there are also other lengths, and
SmolLM2-135M; `workloads.py` has them all. The peers:

- `transformers_padded`: all sequences padded to the longest, as its Trainer does;
- `transformers_sorted`: sorted by length and padded in four groups;
- `transformers_packed`: one row with `position_ids` that start anew for each sequence;
- `trl_default`: TRL's SFTTrainer as it comes (padding, gradient checkpointing);
- `trl_padding_free`: with `padding_free=True`, as its documentation recommends;
- `trl_padding_free_no_checkpointing`: the fastest that it can be set to; only without `--quick`, and of the 40M model.

Each side is a process of its own, and they make their steps in turns; figures are ratios within a round. Before any
speed is printed, the loss curves of all sides are compared. Memory is the most that a process held during its first
two steps, above what it held before the model was built.

    python benchmarks/sft.py --quick --json figures.json
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from common import Ratio, machine, parser, write_json
from rounds import Pace, Steps, check_losses, run_sides, timed
from sides import operations
from workers import Step
from workloads import ALL, MAIN, TINY, Job, Work, model_folder, samples, why_not

SIDES = {
    "reallm": "sides:reallm",
    "gemm": "sides:gemm",
    "transformers_packed": "sides:transformers_packed",
    "transformers_sorted": "sides:transformers_sorted",
    "transformers_padded": "sides:transformers_padded",
    "trl_padding_free": "trl_side:trl_padding_free",
    "trl_padding_free_no_checkpointing": "trl_side:trl_padding_free_no_checkpointing",
    "trl_default": "trl_side:trl_default",
}
EXTRA = ("trl_padding_free_no_checkpointing",)
"""Sides that are left out with `--quick`, and with SmolLM2, whose sides are large."""

SPEED_BARS = {
    "trl_default": 8.0,
    "trl_padding_free": 4.5,
    "transformers_padded": 6.0,
    "transformers_packed": 2.6,
    "transformers_sorted": 1.7,
}
MEMORY_BARS = {"transformers_padded": 1.667}
GEMM_BAR = 0.7

QUICK_SECONDS = 400.0
"""When `--quick` begins no more rounds."""
TOLERANCE = {"cpu": 2e-4, "cuda": 2e-2}
"""Of the mean loss in nats. float32: sums in another order, amplified by three steps of Adam. bfloat16: rounding."""


def main() -> None:
    """Measure, print a table for each work, and write the figures if asked to."""
    started = time.monotonic()
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="a tiny model, one round: does it all still run?")
    arguments_of.add_argument(
        "--peak-tflops", type=float, default=989.4, help="on a GPU: its nominal bfloat16 speed, for MFU (H100: 989.4)"
    )
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    works = (TINY,) if arguments.tiny else (MAIN,) if arguments.quick else ALL
    pace = Pace(1) if arguments.tiny else Pace(4, started + QUICK_SECONDS) if arguments.quick else Pace(7)
    has_trl = find_spec("trl") is not None
    if not has_trl:
        say("TRL is not installed (pip install trl): its sides are left out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, work in enumerate(works, 1):
            say(f"work {number} of {len(works)}: {work.title}")
            missing = why_not(work)
            if missing:
                say(f"left out: {missing}")
                continue
            job = _job(work, Path(scratch), device)
            with_extra = not arguments.quick and work.model != "smollm2"
            sides = {
                name: run
                for name, run in SIDES.items()
                if (has_trl or not name.startswith("trl")) and (with_extra or name not in EXTRA)
            }
            steps = _run(job, sides, pace, say)
            figures |= _report(work, job, steps, arguments.peak_tflops)
            write_json(arguments.json, figures)  # after each work: a long run that is stopped leaves what it has
    say("done")


def _job(work: Work, scratch: Path, device: str) -> Job:
    folder = model_folder(work.model, scratch)
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return Job(folder, samples(work, vocab_size), device)


def _run(job: Job, sides: Mapping[str, str], pace: Pace, say: Callable[[str], None]) -> Steps:
    """Start all sides, check that they compute the same, and time them."""
    say(
        f"{job.n_tokens:,} tokens, the longest sequence {max(len(sample.tokens) for sample in job.samples)}, "
        f"{job.n_targets:,} carry loss; starting {len(sides)} processes"
    )
    tolerance = TOLERANCE[job.device]

    def check(steps: Steps) -> None:
        check_losses({name: mine for name, mine in steps.items() if name != "gemm"}, tolerance, say)

    return run_sides(sides, job, pace, check, say)


def _report(work: Work, job: Job, steps: Steps, peak_tflops: float) -> dict[str, float]:
    """Print the table of a work and return its figures."""
    suffix = f"_{work.name}" if work.name else ""
    is_main = work == MAIN
    figures: dict[str, float] = {}

    def figure(name: str, value: float, bar: float | None) -> str:
        figures[name + suffix] = value
        if bar is None or not is_main:
            return ""
        figures[f"{name}_bar"] = bar
        return f"{bar:g}"

    ours = steps["reallm"]
    memory = {name: max(step.peak_mb for turn, step in mine.items() if turn <= 1) for name, mine in steps.items()}
    print(f"\n{work.title}; ratios are theirs over ours, medians of the rounds (quartiles)")
    print(f"  {'':34s}{'s/step':>7s}  {'time':22s}{'bar':>4s}{'MB':>8s}  {'memory':7s}{'bar':>5s}")
    print(f"  {'reallm':34s}{_median(ours):7.2f}  {'':22s}{'':4s}{memory['reallm']:8.0f}")
    for name, theirs in steps.items():
        if name in ("reallm", "gemm"):
            continue
        speed = Ratio.of(*timed(theirs, ours))
        speed_bar = figure(f"sft_over_{name}", speed.median, SPEED_BARS.get(name))
        less = memory[name] / memory["reallm"]
        short_name = name.removeprefix("transformers_")
        memory_bar = figure(f"sft_memory_{short_name}_over_reallm", less, MEMORY_BARS.get(name))
        print(
            f"  {name:34s}{_median(theirs):7.2f}  {speed!s:22s}{speed_bar:>4s}"
            f"{memory[name]:8.0f}  {less:<7.2f}{memory_bar:>5s}"
        )

    products, needed = operations(job)
    bare, whole = timed(steps["gemm"], ours)
    share = Ratio.of([needed / seconds for seconds in whole], [products / seconds for seconds in bare])
    bar = figure("sft_share_of_gemm_ceiling", share.median, GEMM_BAR)
    print(
        f"  reallm reaches {share} of the speed of its matrix products alone, "
        f"{products / _median(steps['gemm']) / 1e9:.0f} GFLOP/s{f'; bar {bar}' if bar else ''}"
    )
    if job.device == "cuda":
        mfu = needed / _median(ours) / (peak_tflops * 1e12)
        figure("sft_mfu", mfu, None)
        print(f"  MFU {mfu:.1%} of {peak_tflops:g} TFLOP/s")
    print(flush=True)
    return figures


def _median(steps: Mapping[int, Step]) -> float:
    """Seconds, the warm-up left out."""
    return statistics.median(step.seconds for turn, step in steps.items() if turn)


if __name__ == "__main__":
    main()
