"""What rows far longer than `max_seqlen` cost: time and memory of a dataset with them, against the same without them.

Cases: `10mb` has three rows of 10 MB, of words, of a single word and of characters that are not ASCII; `100mb` has one
of 100 MB; `gz` is a compressed file with 1 GiB of blanks on a line, which is refused. `long_rows_<case>` is the time
without the rows divided by that with them. `long_rows_<case>_size_over_memory` is the size of the rows, or for `gz` of
the longest line that is read, divided by the memory of all processes that they take in addition. Each run is a process
of its own, without a cache.

    python benchmarks/long_rows.py --quick --json figures.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import pydoc_data.topics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Ratio, parser, write_json
from rows import MAX_SEQLEN, save_tokenizer, watched, write_rows

BAR = 0.7
MEMORY_BAR = 1 / 8
MB = 10**6
N_ROWS = 20_000
USUAL = "usual"
LONGEST_LINE = 1 << 28
CASES = {"10mb": 30 * MB, "100mb": 100 * MB, "gz": LONGEST_LINE}
"""Name -> bytes that are read of the long rows."""


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser(str(__doc__).splitlines()[0])
    arguments.add_argument("--num-proc", type=int, default=2)
    arguments.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.side:
        run_side(*options.side, num_proc=options.num_proc)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_tokenizer(folder / "tokenizer")
        files = write_files(folder)
        figures = compare(files, folder / "tokenizer", 3 if options.quick else 7, options.num_proc)
    write_json(options.json, figures)


def compare(files: dict[str, Path], tokenizer: Path, rounds: int, num_proc: int) -> dict[str, float]:
    """Run all cases in turn, check what became of their rows, and print and return the figures."""
    seconds: dict[str, list[float]] = {name: [] for name in files}
    peaks: dict[str, list[float]] = {name: [] for name in files}
    n_samples: dict[str, int] = {}
    for turn in range(rounds):
        for name in files if turn % 2 == 0 else [*files][::-1]:
            command = [sys.executable, __file__, "--num-proc", str(num_proc)]
            found, peak = watched([*command, "--side", str(files[name]), str(tokenizer)])
            n_samples[name] = found["samples"]
            seconds[name].append(found["seconds"])
            peaks[name].append(peak)
            print(f"{name}: {found['seconds']:.2f} s, {peak:,.0f} MiB", flush=True)
    usual = n_samples[USUAL]
    if n_samples != {USUAL: usual, "10mb": usual + 3, "100mb": usual + 1, "gz": 0}:
        raise SystemExit(f"the files have other samples than they should: {n_samples}")
    figures: dict[str, float] = {}
    for name, size in CASES.items():
        ratio = Ratio.of(seconds[USUAL], seconds[name])
        more = max(1.0, max(peaks[name]) - min(peaks[USUAL])) * 2**20
        figures |= {f"long_rows_{name}": ratio.median, f"long_rows_{name}_bar": BAR}
        figures |= {f"long_rows_{name}_size_over_memory": size / more}
        figures |= {f"long_rows_{name}_size_over_memory_bar": MEMORY_BAR}
        print(f"{name}: without / with the long rows {ratio}; {more / size:.1f} bytes of memory for each of theirs")
    return figures


def write_files(folder: Path) -> dict[str, Path]:
    """The file of each case: the same rows, and in the middle of them the long ones."""
    files = {name: folder / f"{name}.jsonl" for name in (USUAL, "10mb", "100mb")}
    write_rows(files[USUAL], "pairs", N_ROWS)
    rows = files[USUAL].read_text(encoding="utf-8").splitlines(keepends=True)
    prose = " ".join(pydoc_data.topics.topics.values())
    texts = {
        "10mb": [filled(prose, 10 * MB), filled("abcdefg", 10 * MB), filled("北京今天的天气很好", 10 * MB // 3)],
        "100mb": [filled(prose, 100 * MB)],
    }
    for name, answers in texts.items():
        lines = [json.dumps({"prompt": "The", "answer": text}, ensure_ascii=False) + "\n" for text in answers]
        half = len(rows) // 2
        files[name].write_text("".join([*rows[:half], *lines, *rows[half:]]), encoding="utf-8")
    files["gz"] = folder / "gz.jsonl.gz"
    with gzip.open(files["gz"], "wb", compresslevel=1) as file:
        for _ in range(1 << 10):
            file.write(b" " * (1 << 20))
    return files


def filled(text: str, n: int) -> str:
    """The text again and again, `n` characters."""
    return (text * (n // len(text) + 1))[:n]


def run_side(data: str, tokenizer_folder: str, *, num_proc: int) -> None:
    """Tokenize in this process, and print seconds and the number of samples, 0 if the file is refused."""
    from transformers import AutoTokenizer

    from reallm import DatasetUtility
    from reallm.errors import DataError
    from reallm_datasets.prompt_answer import PromptAnswerDataset

    util = DatasetUtility(1, 0, 1, AutoTokenizer.from_pretrained(tokenizer_folder))
    start = time.perf_counter()
    samples: Any = ()
    try:
        samples = PromptAnswerDataset(util, path=data, max_seqlen=MAX_SEQLEN, num_proc=num_proc, cache_dir=None)
    except DataError as error:
        print(error, file=sys.stderr)
    print(json.dumps({"seconds": time.perf_counter() - start, "samples": len(samples)}))


if __name__ == "__main__":
    main()
