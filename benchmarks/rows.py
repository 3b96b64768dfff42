"""Tokenizing many rows: rows per second and peak memory of the whole process tree, against `datasets.map`.

Both sides read the same JSON lines, make the same tokens and masks with the same tokenizer and chat template, with the
same number of processes, and end with files on disk: reallm's cache, or Arrow. Each run is a process of its own with
empty caches; time is counted from the path to the usable dataset, without imports. Memory is sampled as proportional
set size, in which shared pages count once.

    python benchmarks/rows.py --quick --json figures.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pydoc_data.topics
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from common import Ratio, parser, write_json

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_SEQLEN = 512
SIDES = ("reallm", "datasets")


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, help="rows of each kind; 100,000 with --quick, or else 1,000,000")
    arguments.add_argument("--rounds", type=int, default=2, help="runs of each side")
    arguments.add_argument("--num-proc", type=int, default=2)
    arguments.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.side:
        run_side(*options.side, num_proc=options.num_proc)
        return
    n_rows = options.rows or (100_000 if options.quick else 1_000_000)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder, "tokenizer"))
        for kind in ("pairs", "chats"):
            data = Path(folder, f"{kind}.jsonl")
            write_rows(data, kind, n_rows)
            figures |= compare(kind, data, options.rounds, options.num_proc, n_rows)
    write_json(options.json, figures)


def compare(kind: str, data: Path, rounds: int, num_proc: int, n_rows: int) -> dict[str, float]:
    """Run both sides in turn, check that they made the same, and print and return the figures."""
    seconds: dict[str, list[float]] = {name: [] for name in (*SIDES, "map alone", "again")}
    peaks: dict[str, list[float]] = {name: [] for name in SIDES}
    results: set[tuple[int, str]] = set()
    for turn in range(rounds):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            cache = data.with_name("cache")
            found, peak = measured(side, data, cache, num_proc)
            seconds[side].append(found["seconds"])
            peaks[side].append(peak)
            results.add((found["tokens"], found["digest"]))
            if side == "datasets":
                seconds["map alone"].append(found["map_seconds"])
            else:
                again, _ = measured(side, data, cache, num_proc)
                seconds["again"].append(again["seconds"])
                results.add((again["tokens"], again["digest"]))
            shutil.rmtree(cache, ignore_errors=True)  # files below 8 MB are not cached
            print(f"{kind}: {side}, {n_rows / found['seconds']:,.0f} rows/s, {peak:,.0f} MiB", flush=True)
    if len(results) != 1:
        raise SystemExit(f"the sides made different tokens of the same rows: {sorted(results)}")
    speed = Ratio.of(seconds["datasets"], seconds["reallm"])
    map_alone = Ratio.of(seconds["map alone"], seconds["reallm"])
    memory = Ratio.of(peaks["datasets"], peaks["reallm"])
    again = Ratio.of(seconds["reallm"], seconds["again"])
    print(f"{kind}: {speed} times as fast as loading and datasets.map, {map_alone} as datasets.map alone; ", end="")
    print(f"datasets takes {memory} times the memory; from the cache {again} times as fast, ", end="")
    print(f"{min(seconds['again']):.2f} s")
    return {
        f"rows_{kind}_over_datasets": speed.median,
        f"rows_{kind}_over_datasets_map_alone": map_alone.median,
        f"rows_{kind}_memory_datasets_over_reallm": memory.median,
        f"rows_{kind}_from_cache": again.median,
        f"rows_{kind}_per_second": n_rows / min(seconds["reallm"]),
        f"rows_{kind}_peak_mib": max(peaks["reallm"]),
    }


def measured(side: str, data: Path, cache: Path, num_proc: int) -> tuple[dict[str, Any], float]:
    """What a side reports, and the peak of memory of its processes together, in MiB."""
    command = [sys.executable, __file__, "--num-proc", str(num_proc), "--side", side]
    return watched([*command, str(data), str(data.with_name("tokenizer")), str(cache)])


def watched(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What a command prints last, as JSON, and the peak of memory of its processes together, in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0.0]
    watch = Thread(target=watch_memory, args=(process, peak))
    watch.start()
    assert process.stdout is not None
    out = process.stdout.read()
    watch.join()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(out.splitlines()[-1]), peak[0]


def watch_memory(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Until the process ends, the highest sum of the proportional set sizes of it and its descendants."""
    import psutil

    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        with suppress(psutil.Error):
            for each in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    total += each.memory_full_info().pss
        peak[0] = max(peak[0], total / 2**20)
        time.sleep(0.2)


def run_side(side: str, data: str, tokenizer_folder: str, cache: str, *, num_proc: int) -> None:
    """Tokenize in this process, and print seconds, tokens and a digest of some samples."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = (reallm_side if side == "reallm" else datasets_side)(data, tokenizer, cache, num_proc)
    print(json.dumps(found))


def reallm_side(data: str, tokenizer: Any, cache: str, num_proc: int) -> dict[str, Any]:
    from reallm import DatasetUtility
    from reallm_datasets.prompt_answer import PromptAnswerDataset

    start = time.perf_counter()
    util = DatasetUtility(1, 0, 1, tokenizer)
    rows = PromptAnswerDataset(util, path=data, max_seqlen=MAX_SEQLEN, num_proc=num_proc, cache_dir=cache)
    seconds = time.perf_counter() - start
    store = rows._rows._store
    ids, masks = store.columns["input_ids"], store.columns["loss_mask"]
    digest = digest_of(len(ids), lambda i: (ids[i].tolist(), masks[i].tolist()))
    return {"seconds": seconds, "tokens": len(ids.values), "digest": digest}


def datasets_side(data: str, tokenizer: Any, cache: str, num_proc: int) -> dict[str, Any]:
    import datasets

    from reallm.data.rows import Row
    from reallm_datasets.encoders.prompt_answer import PromptAnswerEncoder

    datasets.disable_progress_bars()
    encoder = PromptAnswerEncoder(tokenizer, MAX_SEQLEN, "truncate", "assistant", ())

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        keys = list(batch)
        rows = [Row("", "", dict(zip(keys, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        fields = [one.fields for one in encoder.encode(rows) if one.fields is not None]
        return {name: [of_row[name] for of_row in fields] for name in ("input_ids", "loss_mask")}

    start = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=data, cache_dir=cache, split="train")
    map_start = time.perf_counter()
    mapped = loaded.map(
        encode, batched=True, num_proc=num_proc, remove_columns=loaded.column_names, load_from_cache_file=False
    )
    end = time.perf_counter()
    digest = digest_of(len(mapped), lambda i: (mapped[i]["input_ids"], mapped[i]["loss_mask"]))
    tokens = sum(len(ids) for batch in mapped.iter(1000) for ids in batch["input_ids"])
    return {"seconds": end - start, "map_seconds": end - map_start, "tokens": tokens, "digest": digest}


def digest_of(n: int, sample: Any) -> str:
    """Hash of every hundredth sample."""
    digest = hashlib.sha256()
    for i in range(0, n, 100):
        digest.update(repr(sample(i)).encode())
    return digest.hexdigest()


def write_rows(path: Path, kind: str, n_rows: int) -> None:
    """Rows of real English: prompts of about 30 words and answers of about 80, or conversations of two turns."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    draw = random.Random(kind)

    def text(median: int) -> str:
        n = min(400, max(3, round(draw.lognormvariate(0, 0.7) * median)))
        start = draw.randrange(len(words) - n)
        return " ".join(words[start : start + n])

    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_rows):
            if kind == "pairs":
                row: dict[str, Any] = {"prompt": text(30), "answer": " " + text(80)}
            else:
                roles = ("user", "assistant") * 2
                row = {"messages": [{"role": role, "content": text(25 if role == "user" else 50)} for role in roles]}
            file.write(json.dumps(row) + "\n")


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 16,000 tokens, trained on the same text, with a chat template that marks turns."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = CHATML
    made.save_pretrained(folder)


if __name__ == "__main__":
    main()
