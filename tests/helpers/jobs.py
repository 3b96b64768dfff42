"""Runs the command `reallm` on a tiny model in processes: one, or the ranks of a job."""

from __future__ import annotations

import contextlib
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
from tests.helpers.forked import ForkedPython
from tests.helpers.tokenizers import tiny_tokenizer

HF_CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of standard error that are not blank."""
        return [line for line in self.err.splitlines() if line.strip()]


class Command:
    """A process of `reallm` whose output goes to files.

    Args:
        folder: of the output files.
        arguments: of the command.
        environment: variables added to those of this process.
        program: Python source to run instead of `reallm`.
        under: arguments of Python that start the command, such as those of `torchrun`.
        through: a command that runs the command after it, such as `ip netns exec NAME`.
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
        run = [*(["-m", "reallm"] if program is None else ["-c", program]), *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._out.touch()
        self.process: ForkedPython | subprocess.Popen[bytes]
        if not under and not through:
            self.process = ForkedPython(run, variables, self._out, self._err)
            return
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*through, sys.executable, *under, *run], env=variables, stdout=out, stderr=err
            )

    def wait_for(self, text: str, timeout_s: float = 240.0) -> None:
        """Wait until the command has printed a text."""
        self.wait_until(lambda: text in self._out.read_text(), f"'{text}'", timeout_s)

    def wait_until(self, is_so: Callable[[], object], what: str, timeout_s: float = 240.0) -> None:
        """Wait for a condition that holds while the command runs."""
        until = time.monotonic() + timeout_s
        while not is_so():
            assert self.process.poll() is None, f"ended without {what}:\n{self._err.read_text()}"
            assert time.monotonic() < until, f"no {what} in {timeout_s} s:\n{self._out.read_text()}"
            time.sleep(0.005)

    def end(self, timeout_s: float = 240.0) -> CommandResult:
        """Wait for the command to end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its ranks notice
            raise
        return CommandResult(code, self._out.read_text(), self._err.read_text())

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of the ranks that the command has started."""
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
        """Send a signal to one rank; returns its process id."""
        pid = self.ranks()[rank]
        os.kill(pid, number)
        return pid


def side_by_side(folder: Path, arguments: Sequence[Sequence[str]], program: str | None = None) -> list[CommandResult]:
    """Run one command for each rank of a job, as srun does, and wait for all."""
    return [command.end() for command in as_under_srun(folder, arguments, program)]


def as_under_srun(folder: Path, arguments: Sequence[Sequence[str]], program: str | None = None) -> list[Command]:
    """Start one command for each rank of a job with the variables that srun sets; rank 0 serves the store.

    Args:
        folder: of the output files.
        arguments: of each rank.
        program: Python source to run instead of `reallm`.
    """
    port = free_port()
    return [
        Command(
            folder,
            of_rank,
            {
                "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(len(arguments)), "SLURM_LOCALID": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
            program,
        )
        for rank, of_rank in enumerate(arguments)
    ]  # fmt: skip


def free_port() -> int:
    """A port that stays free until it is used: below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def torchrun(n: int) -> list[str]:
    """`under` of a `Command` that torchrun starts as `n` processes on this machine."""
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
    """The loss of each training step in a run's `metrics.jsonl`; an unfinished last line is left out."""
    lines = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    records = [json.loads(line) for line in lines]
    return [record["train/loss"] for record in records if "train/loss" in record]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # the process has ended meanwhile


def ended_soon(pid: int, timeout_s: float = 180.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there after {timeout_s} s")
