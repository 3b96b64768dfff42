"""Fuzzing: mutated files for all that reads files of others; is each read, or refused with one line?

For each reader of `tests/fuzz/readers.py` files of a small corpus are changed at random, from a seed, and read in a
process with a bound on its memory; a watchdog ends inputs that take more than five seconds of CPU time. For each other
exception the first input is shown.

    python benchmarks/fuzz.py --json figures.json
    python benchmarks/fuzz.py --minutes 1 --seed 7 config tokenizer
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from common import machine, parser, write_json

sys.path.append(str(Path(__file__).parent.parent))
from tests.fuzz.readers import READERS
from tests.fuzz.runner import Result, as_table, figures, run


def main() -> None:
    """Fuzz each reader, print a table, and write the figures if asked to; exit with 1 if anything was found."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--minutes", type=float, help="how long in all; by default 10, with --quick 1")
    arguments_of.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="readers at the same time")
    arguments_of.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    arguments_of.add_argument("readers", nargs="*", metavar="READER", help="beginnings of names; by default all")
    arguments = arguments_of.parse_args()
    seconds = 60 * (arguments.minutes or (1 if arguments.quick else 10))
    chosen = [name for name in READERS if not arguments.readers or name.startswith(tuple(arguments.readers))]
    torch.set_num_threads(1)
    print(f"{machine()}; seed {arguments.seed}; {seconds / 60:g} minutes")
    results: list[Result] = []
    with ThreadPoolExecutor(arguments.processes) as pool:
        each = seconds * arguments.processes / len(chosen)
        for result in pool.map(lambda name: run(name, READERS[name], seed=arguments.seed, seconds=each), chosen):
            results.append(result)
            header, line = as_table([result]).split("\n")
            print(line if len(results) > 1 else f"{header}\n{line}", flush=True)
    found = figures(results)
    print(f"{found['inputs']:,} inputs: {found['other_exceptions']:,} other exceptions, {found['hangs']:,} hangs")
    for one in results:
        for line, text in one.others.items():
            print(f"\n{one.name}: {line}\n{text}")
    write_json(arguments.json, found)
    sys.exit(1 if found["other_exceptions"] or found["hangs"] else 0)


if __name__ == "__main__":
    main()
