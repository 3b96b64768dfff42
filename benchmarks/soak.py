"""Soak: random requests to a generation engine for ten minutes; does the process hold more and more memory?

A small Llama and a byte tokenizer; prompts share prefixes, samples share prompts, there is room for only some of the
sequences, so that others wait and are computed again, requests are cancelled in all states, and end by tokens, strings
and lengths. Memory is what is resident after each pass over the traffic, when nothing is left to do.

`soak_memory` is the memory after the warm-up, a fifth of the time, divided by the most memory afterwards: 0.99 is a
growth of 1 %.

    python benchmarks/soak.py --json figures.json
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import torch

from common import machine, parser, write_json
from reallm import ReaLModel
from reallm.demo.tokenizer import byte_tokenizer
from workloads import LLAMA_TINY

sys.path.append(str(Path(__file__).parent.parent))
from tests.helpers.generation_traffic import Traffic

BAR = 0.99
WARM_UP = 0.2
"""Share of the time."""
STEPS = 400
"""Steps with arrivals in a pass over the traffic."""
LONGEST_PROMPT, MOST_NEW = 600, 400
CACHE_TOKENS = 8192


def main() -> None:
    """Generate, print the memory after each pass, and write the figure if asked to."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--minutes", type=float, help="how long; by default 10, with --quick 2")
    arguments = arguments_of.parse_args()
    seconds = 60 * (arguments.minutes or (2 if arguments.quick else 10))
    torch.manual_seed(0)
    print(f"{machine()}; torch {torch.__version__}; {seconds / 60:g} minutes")
    tokenizer = byte_tokenizer()
    config = ReaLModel.config_from_llama(_llama_config(len(tokenizer)))
    model = ReaLModel(config).eval()
    before: list[float] = []
    after: list[float] = []
    started = time.monotonic()
    with model.generation_engine(tokenizer, kv_cache_tokens=CACHE_TOKENS, max_batch_tokens=512) as engine:
        traffic = Traffic(engine, len(tokenizer), longest_prompt=LONGEST_PROMPT, most_new=MOST_NEW, seed=0)
        while (elapsed := time.monotonic() - started) < seconds or not after:
            for _ in range(STEPS):
                traffic.step()
            traffic.finish()
            gc.collect()
            held = _resident_mib()
            (before if elapsed < WARM_UP * seconds else after).append(held)
            ended = ", ".join(f"{n:,} by {reason}" for reason, n in sorted(traffic.ended.items()))
            print(
                f"[{time.monotonic() - started:5.0f} s] {held:7.1f} MiB; {traffic.n_tokens:,} tokens; {ended}",
                flush=True,
            )
    first = before[-1] if before else after[0]
    figure = first / max(after)
    print(f"memory after the warm-up {first:.1f} MiB, at most {max(after):.1f} MiB later: {figure:.4f} (bar {BAR})")
    write_json(arguments.json, {"soak_memory": figure, "soak_memory_bar": BAR})


def _llama_config(vocab_size: int) -> object:
    import transformers

    return transformers.LlamaConfig(**(LLAMA_TINY | {"vocab_size": vocab_size, "max_position_embeddings": 4096}))


def _resident_mib() -> float:
    """Resident memory without what is mapped from files, such as code that is used for the first time."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    main()
