"""How soon work can begin: a checkpoint to a usable model, and a command to the end of its first training step.

Loading: `ReaLModel.from_pretrained(folder)` against `AutoModelForCausalLM.from_pretrained(folder)` of transformers, in
turns in one process, from a warm file cache; a model of the shape of SmolLM2-135M, float32, random weights. reallm maps
the file and reads it when it is used, so that there is a second figure for loading and adding up all parameters.

First step: `reallm sft ... max_steps=1` against a short script with transformers alone, and one with TRL, on the same
rows, tiny model and batch, each in a process of its own. Wall and CPU time from the start of the process to the end of
the step, when each leaves a file behind; the losses are compared.

    python benchmarks/load.py --quick --json figures.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from common import Ratio, interleave, machine, parser, write_json
from reallm import ReaLModel, ReaLModelConfig
from reallm.demo.rows import demo_rows
from reallm.demo.tokenizer import byte_tokenizer
from workloads import LLAMA_TINY, SMOLLM2_135M, random_llama

HERE = Path(__file__).parent
N_ROWS = 256
"""Rows of the demo, all of them in one batch."""
LOSS_TOLERANCE = 1e-4
"""Of the mean loss in nats, float32."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="tiny models, few rounds: does it all still run?")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        config = LLAMA_TINY if arguments.tiny else SMOLLM2_135M
        rounds = 2 if arguments.tiny else 11 if arguments.quick else 41
        figures = loading(random_llama(config, Path(scratch) / "model"), rounds)
        figures |= first_steps(Path(scratch), 1 if arguments.tiny else 5 if arguments.quick else 15)
    write_json(arguments.json, figures)


# ---------------------------------------------------------------------- a checkpoint to a usable model


def loading(folder: Path, rounds: int) -> dict[str, float]:
    """Time both ways of loading a checkpoint folder, with and without a look at every parameter."""
    theirs = transformers.AutoModelForCausalLM
    ours, other = (sorted(_sums(model.from_pretrained(folder))) for model in (ReaLModel, theirs))
    assert ours == other, "not the same parameters"
    seconds = interleave(
        {
            "reallm": lambda: ReaLModel.from_pretrained(folder),
            "transformers": lambda: theirs.from_pretrained(folder),
            "reallm, touched": lambda: _sums(ReaLModel.from_pretrained(folder)),
            "transformers, touched": lambda: _sums(theirs.from_pretrained(folder)),
        },
        rounds,
    )
    size = (folder / "model.safetensors").stat().st_size
    print(f"\na checkpoint of {size / 1e6:.0f} MB to a model, warm, seconds, median of {rounds} rounds (least to most)")
    for name, values in seconds.items():
        print(f"  {name:24s}{statistics.median(values):7.3f}  ({min(values):.3f} to {max(values):.3f})")
    figures = {}
    for name, suffix in (("load", ""), ("load_and_touch", ", touched")):
        ratio = Ratio.of(seconds[f"transformers{suffix}"], seconds[f"reallm{suffix}"])
        figures[f"{name}_over_transformers"] = ratio.median
        print(f"{name.replace('_', ' ')}: reallm is {ratio} times as fast")
    return figures


def _sums(model: torch.nn.Module) -> list[float]:
    """Of each parameter: every byte has been read then."""
    return [parameter.detach().sum().item() for parameter in model.parameters()]


# ---------------------------------------------------------------------- a command to the end of its first step


@dataclass(frozen=True)
class Start:
    """What a process took, from its start to the end of its first training step and to its own end."""

    wall: float
    cpu: float
    """User and system seconds."""
    whole_wall: float
    whole_cpu: float
    loss: float


def first_steps(scratch: Path, rounds: int) -> dict[str, float]:
    """Start the commands in turns, and compare how soon they have made a step."""
    model = _tiny_model(scratch / "untrained")
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in demo_rows(1).train[:N_ROWS]), encoding="utf-8")
    sides = ["reallm", "transformers", *(["trl"] if find_spec("trl") else [])]
    starts: dict[str, list[Start]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        shift = turn % len(sides)  # no side always follows the same one
        for name in sides[shift:] + sides[:shift]:
            start = _start(name, model, rows, scratch / f"{name}-{turn}")
            if turn:  # the first round fills the file cache
                starts[name].append(start)
    losses = {name: values[0].loss for name, values in starts.items()}
    if max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE:
        raise SystemExit(f"the sides do not compute the same: {losses}")

    print(f"\nfrom the start of the process to the end of the first step, median of {rounds} rounds, seconds")
    print(f"  {'':14s}{'wall':>7s}{'CPU':>7s}    to the end, checkpoint saved: wall{'CPU':>7s}")
    for name, values in starts.items():
        wall, cpu, whole_wall, whole_cpu = (
            statistics.median(getattr(start, what) for start in values)
            for what in ("wall", "cpu", "whole_wall", "whole_cpu")
        )
        print(f"  {name:14s}{wall:7.2f}{cpu:7.2f}{whole_wall:38.2f}{whole_cpu:7.2f}")
    figures = {}
    for name in sides[1:]:
        for what in ("wall", "cpu"):
            ratio = Ratio.of(*([getattr(start, what) for start in starts[side]] for side in (name, "reallm")))
            figures[f"first_step_{what}_over_{name}"] = ratio.median
            print(f"first step, {what}: {name} takes {ratio} times as long as reallm")
    return figures


def _tiny_model(folder: Path) -> Path:
    """The demo's untrained model with its tokenizer."""
    sizes = json.loads(files("reallm.demo").joinpath("model.json").read_text(encoding="utf-8"))
    tokenizer = byte_tokenizer()
    config = ReaLModel.config_to_llama(ReaLModelConfig(vocab_size=len(tokenizer), **sizes))
    config.bos_token_id = None
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    ReaLModel.from_llama(config, seed=0).save_pretrained(folder, tokenizer=tokenizer)
    return folder


def _command(name: str, model: Path, rows: Path, output: Path) -> tuple[list[str], Path]:
    """What to run, and the file that appears when the first step is done."""
    if name != "reallm":
        script = str(HERE / f"first_step_{name}.py")
        return [sys.executable, script, str(model), str(rows), str(output)], output / "step.json"
    assignments = {
        "model.path": model,
        "dataset.train_path": rows,
        "dataset.train_bs_n_seqs": N_ROWS,
        "optimizer.lr": 1e-4,
        "optimizer.warmup_steps": 0,
        "max_steps": 1,
        "max_tokens_per_microbatch": 65536,
        "output_dir": output,
        "name": "run",
    }
    command = [sys.executable, "-m", "reallm", "sft", *(f"{key}={value}" for key, value in assignments.items())]
    return command, output / "run" / "metrics.jsonl"


def _start(name: str, model: Path, rows: Path, output: Path) -> Start:
    output.mkdir()
    command, marker = _command(name, model, rows, output)
    with (output / "log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        wall = cpu = 0.0
        while not wall and process.poll() is None:
            if marker.exists() and marker.stat().st_size:
                wall, cpu = time.perf_counter() - started, _cpu_seconds(process.pid)
            else:
                time.sleep(0.005)
        _, status, usage = os.wait4(process.pid, 0)
        whole = time.perf_counter() - started
    if status or not wall:
        raise SystemExit(f"{' '.join(command)} failed:\n{(output / 'log').read_text(errors='replace')[-4000:]}")
    metrics = json.loads(marker.read_text(encoding="utf-8").splitlines()[0])
    return Start(wall, cpu, whole, usage.ru_utime + usage.ru_stime, metrics.get("train/loss", metrics.get("loss")))


def _cpu_seconds(pid: int) -> float:
    """User and system seconds of a process so far; all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


if __name__ == "__main__":
    main()
