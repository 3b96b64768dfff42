"""Soak of the server: valid, hostile and cancelled requests for ten minutes; is each answered as it should be?

`reallm serve` with a small Llama in float64 and a byte tokenizer, in a process of its own, over sockets: completions
and chats, streamed or not, with samples, stop strings, log-probabilities and common beginnings, more than there is room
for; every hostile request of `tests/helpers/hostile_requests.py`; clients that leave, stall, or do not read.

`serving_soak_right` is the share of valid requests whose answer is that of the engine alone, token for token, and
`serving_soak_refused` that of hostile ones that were refused with one error in the form of the API, or ended if there
was nothing to answer. `serving_soak_memory` is the most memory after a pass over the traffic that began in the first
half of the time, divided by the most after one that began in the second. Files, threads and room in the KV cache must
be no more in the second half, and nothing be left to do; else it ends with an error.

    python benchmarks/serving_soak.py --json figures.json
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from common import machine, parser, write_json
from reallm import ReaLModel
from reallm.demo.tokenizer import byte_tokenizer
from reallm.serving.connections import SECONDS_TO_TRANSFER
from workloads import LLAMA_TINY, hf_config

sys.path.append(str(Path(__file__).parent.parent))
from tests.helpers.hostile_requests import attacks, stalling
from tests.helpers.known_requests import known_requests
from tests.helpers.server_traffic import ServerTraffic, Tally
from tests.helpers.tokenizers import CHATML

MEMORY_BAR = 0.95
"""Less than 0.99, as of the engine alone: what the C library keeps after bodies of 10 MB goes up and down by 5 %."""
KEY = "soak"
CACHE_TOKENS = 8192
N_KNOWN, LONGEST = 200, 1500
N_REQUESTS, N_CLIENTS = 200, 24
"""Requests in a round of the traffic, and how many at a time; a pass has as many rounds as stalling clients take."""
LARGE, N_LARGE = 1 << 20, 6
"""Bytes of the hostile requests with which each pass begins, the first one so many times: all passes see the holes that
they leave in memory."""


class Held(NamedTuple):
    """What a process holds."""

    memory_mib: float
    """Resident, without what is mapped from files."""
    n_files: int
    n_threads: int


def main() -> None:
    """Soak, print what the server holds after each pass, and write the figures if asked to; 1 if anything is wrong."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--minutes", type=float, help="how long; by default 10, with --quick 2")
    arguments_of.add_argument("--seed", type=int, default=0, help="seed of the traffic")
    arguments = arguments_of.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server ends as well
    seconds = 60 * (arguments.minutes or (2 if arguments.quick else 10))
    print(f"{machine()}; torch {torch.__version__}; seed {arguments.seed}; {seconds / 60:g} minutes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHATML
        sizes = LLAMA_TINY | {"vocab_size": len(tokenizer), "initializer_range": 0.3}
        model = ReaLModel.from_llama(hf_config(sizes), seed=arguments.seed).eval()
        model.save_pretrained(Path(folder) / "tiny", dtype="float32", tokenizer=tokenizer)
        model.to(torch.float64)  # as the server has it, so that what it generates does not depend on the batch
        known = known_requests(model, tokenizer, N_KNOWN, longest=LONGEST, seed=arguments.seed)
        del model
        log = Path(folder) / "log"
        with _served(Path(folder) / "tiny", log) as (port, pid):
            traffic = ServerTraffic("127.0.0.1", port, key=KEY, known=known, longest=LONGEST, seed=arguments.seed)
            memory, problems = asyncio.run(_soak(traffic, pid, seconds))
        problems += [line for line in log.read_text(errors="replace").splitlines() if "Traceback" in line][:1]
        if problems:
            print("\n".join(log.read_text(errors="replace").splitlines()[-60:]))
    tallies = {"right": traffic.valid, "refused": traffic.hostile}
    figures = {"serving_soak_memory": memory, "serving_soak_memory_bar": MEMORY_BAR}
    for name, tally in tallies.items():
        figures |= {f"serving_soak_{name}": tally.share, f"serving_soak_{name}_bar": 1.0}
    print(f"most memory in the first half of the time over that in the second: {memory:.4f} (bar {MEMORY_BAR})")
    print(f"{_counted(traffic.valid)} valid requests answered as by the engine alone (bar: all)")
    print(
        f"{_counted(traffic.hostile)} hostile ones refused (bar: all); {_counted(traffic.left)} clients left or stalled"
    )
    problems += [flaw for tally in (traffic.valid, traffic.hostile, traffic.left) for flaw in tally.flaws]
    print("\n".join(problems))
    write_json(arguments.json, figures)
    sys.exit(1 if problems else 0)


async def _soak(traffic: ServerTraffic, pid: int, seconds: float) -> tuple[float, list[str]]:
    """The figure of the memory, and what was not as it must be."""
    before: list[Held] = []
    after: list[Held] = []
    started, problems, free = time.monotonic(), [], (await traffic.load())["free_kv_cache_tokens"]
    large = [attack for attack in attacks(KEY) if sum(map(len, attack.sent.parts)) > LARGE]
    while (elapsed := time.monotonic() - started) < seconds or not after:
        stalled = asyncio.gather(
            traffic.attack(stalling(KEY)), traffic.leave_unread(asyncio.sleep(SECONDS_TO_TRANSFER + 20))
        )
        for _ in range(1 if before or after else N_LARGE):
            await traffic.attack(large)  # all at once
        while not stalled.done():
            await traffic.run(N_REQUESTS, N_CLIENTS)
        await stalled
        load = await traffic.quiet()
        if load["free_kv_cache_tokens"] != free:
            problems.append(f"{load} after a pass, but there was room for {free} tokens")
        await asyncio.sleep(6)  # connections that are kept alive end
        held = _held(pid)
        (before if elapsed < seconds / 2 else after).append(held)
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(traffic.kinds.items()))
        print(f"[{time.monotonic() - started:5.0f} s] {held.memory_mib:7.1f} MiB, {held.n_files} files, "
              f"{held.n_threads} threads; {kinds}", flush=True)  # fmt: skip
    for name in ("n_files", "n_threads"):
        at_first, later = (max(getattr(held, name) for held in half) for half in (before, after))
        if later > at_first:
            problems += [f"{name}: {at_first} in the first half, {later} in the second"]
    at_first, later = (max(held.memory_mib for held in half) for half in (before, after))
    return at_first / later, problems


@contextmanager
def _served(folder: Path, log: Path) -> Iterator[tuple[int, int]]:
    """Context with `reallm serve`: its port and its process."""
    command = [sys.executable, "-m", "reallm", "serve", str(folder), "--port", "0", "--device", "cpu"]
    command += ["--dtype", "float64", "--kv-cache-tokens", str(CACHE_TOKENS), "--max-batch-tokens", "512"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"REALLM_API_KEY": KEY})
        try:
            while not (found := re.search(r"http://[\d.]+:(\d+)/v1", log.read_text(errors="replace"))):
                assert process.poll() is None, log.read_text(errors="replace")
                time.sleep(0.1)
            yield int(found[1]), process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text(errors="replace")[-3000:]
        finally:
            process.kill()
            process.wait()


def _held(pid: int) -> Held:
    process = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text(encoding="ascii").splitlines())
    memory, threads = status["RssAnon"].split()[0], status["Threads"]
    return Held(int(memory) / 1024, len([*(process / "fd").iterdir()]), int(threads))


def _counted(tally: Tally) -> str:
    return f"{tally.n_right:,} of {tally.n:,}"


if __name__ == "__main__":
    main()
