"""Runs the command `reallm` in processes of its own, as one or several of a job, on a tiny model."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reallm.engine.real_model import ReaLModel
from tests.helpers.tokenizers import tiny_tokenizer

HF_CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


class Command:
    """`reallm` in a process, with what it prints in files.

    Args:
        folder: where these files go.
        arguments: of the command.
        environment: variables beside those of this process.
        program: Python lines to run in its place.
        under: arguments of Python that start it, such as those of `torchrun`.
        through: a command that runs the command that follows it.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        program: str | None = None,
        under: Sequence[str] = (),
        through: Sequence[str] = (),
    ) -> None:
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        run = [*under, "-m", "reallm"] if program is None else ["-c", program]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*through, sys.executable, *run, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                stdout=out,
                stderr=err,
            )

    def wait_for(self, text: str, timeout_s: float = 90.0) -> None:
        """Wait until it has printed a text."""
        self.wait_until(lambda: text in self._out.read_text(), f"'{text}'", timeout_s)

    def wait_until(self, is_so: Callable[[], object], what: str, timeout_s: float = 90.0) -> None:
        """Wait for something that happens while it runs."""
        until = time.monotonic() + timeout_s
        while not is_so():
            assert self.process.poll() is None, f"ended without {what}:\n{self._err.read_text()}"
            assert time.monotonic() < until, f"no {what} in {timeout_s} s:\n{self._out.read_text()}"
            time.sleep(0.005)

    def end(self, timeout_s: float = 90.0) -> Ended:
        """Wait for its end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its processes notice
            raise
        return Ended(code, self._out.read_text(), self._err.read_text())

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of the processes that it has started."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and _parent(folder) == self.process.pid:
                variables = dict(
                    item.split("=", 1) for item in (folder / "environ").read_text().split("\0") if "=" in item
                )
                if "RANK" in variables:
                    found[int(variables["RANK"])] = int(folder.name)
        return found

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> int:
        """Send one of its processes a signal; the process id."""
        pid = self.ranks()[rank]
        os.kill(pid, number)
        return pid


def side_by_side(folder: Path, arguments: Sequence[Sequence[str]], program: str | None = None) -> list[Ended]:
    """One command for each rank of a job, which find each other as under srun, and how they ended."""
    return [command.end() for command in as_under_srun(folder, arguments, program)]


def as_under_srun(folder: Path, arguments: Sequence[Sequence[str]], program: str | None = None) -> list[Command]:
    """One command for each rank of a job; rank 0 has the store.

    Args:
        folder: where what they print goes.
        arguments: of each rank.
        program: Python lines to run in the place of `reallm`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Command(
            folder,
            own,
            {
                "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(len(arguments)), "SLURM_LOCALID": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
            program,
        )
        for rank, own in enumerate(arguments)
    ]  # fmt: skip


def torchrun(n: int) -> list[str]:
    """What `Command` is to run under for `n` processes on this machine, started by torchrun."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]


def make_inputs(folder: Path) -> Path:
    """A tiny checkpoint and rows to train it on, in a folder."""
    ReaLModel.from_llama(HF_CONFIG, seed=5).save_pretrained(folder / "model", tokenizer=tiny_tokenizer())
    words = ["red", "blue", "old", "new", "sun", "sea", "tea"]
    for name, numbers in {"train": range(16), "valid": range(100, 104)}.items():
        rows = [
            {"prompt": f"Say {n}:", "answer": " " + " ".join(random.Random(n).choices(words, k=2 + n % 4))}
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sft(inputs: Path, output: Path, *arguments: str) -> list[str]:
    """The arguments of `reallm sft` on these inputs, 4 steps an epoch."""
    return [
        "sft", f"model.path={inputs / 'model'}", "model.device=cpu", f"dataset.train_path={inputs / 'train.jsonl'}",
        "dataset.train_bs_n_seqs=4", "dataset.max_seqlen=64", "optimizer.lr=1e-3", "loggers=[jsonl]",
        f"output_dir={output}", *arguments,
    ]  # fmt: skip


def losses(run: Path) -> list[float]:
    """Of each training step that a run's `metrics.jsonl` has; a line that is being written is left out."""
    lines = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    records = [json.loads(line) for line in lines]
    return [record["train/loss"] for record in records if "train/loss" in record]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # it has ended meanwhile
