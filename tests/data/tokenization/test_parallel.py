"""Encoding in several processes gives what one process gives, whatever goes wrong in them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedBatch, RowEncoder, encode_batch
from reallm.data.tokenization.parallel import encode_in_order
from reallm.errors import DataError
from tests.data.tokenization.encoders import WORDS, LetterEncoder, OnlyHereEncoder


def batches(n: int, size: int = 5) -> list[list[Row]]:
    return [
        [Row(f"{b}/{i}", f"f:{b}/{i}", {"text": WORDS[(b + i) % 5]}, b * size + i) for i in range(size)]
        for b in range(n)
    ]


def encoded(rows: list[list[Row]], encoder: RowEncoder, *, workers: int = 2) -> list[EncodedBatch]:
    """What two workers and this process make of the rows; workers are started at once."""
    return list(
        encode_in_order(
            iter(rows), encoder, num_proc=workers, n_rows=lambda: None, workers_pay_after=0 if workers else 1
        )
    )


def as_values(batches: list[EncodedBatch]) -> list[Any]:
    fields = [{name: (v.tolist(), n.tolist()) for name, (v, n) in batch.fields.items()} for batch in batches]
    rest = [
        (batch.is_kept.tolist(), batch.ids, batch.remarks, [(i, str(e)) for i, e in batch.errors]) for batch in batches
    ]
    return list(zip(fields, rest, strict=True))


def slowly(rows: list[list[Row]]) -> Iterator[list[Row]]:
    """Batches for as long as workers need to start, and some more for them."""
    for batch in rows:
        time.sleep(0.02)
        yield batch


def test_workers_give_the_same_in_the_same_order() -> None:
    rows = batches(120)
    rows[40][2] = Row("bad", "f:bad", {"txt": "x"}, 202)
    alone = [encode_batch(LetterEncoder(), batch) for batch in rows]
    assert alone[40].errors[0][0] == 202
    in_workers = list(
        encode_in_order(slowly(rows), LetterEncoder(), num_proc=2, n_rows=lambda: None, workers_pay_after=0)
    )
    assert as_values(in_workers) == as_values(alone)


@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(lambda: OnlyHereEncoder(), id="not unpickled there"),
        pytest.param(lambda: LetterEncoder(fail_outside_of=os.getpid()), id="fails there"),
    ],
)
def test_this_process_does_what_workers_cannot(encoder: Any) -> None:
    rows = batches(120)
    made = encode_in_order(slowly(rows), encoder(), num_proc=2, n_rows=lambda: None, workers_pay_after=0)
    assert as_values(list(made)) == as_values([encode_batch(LetterEncoder(), batch) for batch in rows])


def test_an_encoder_that_cannot_be_pickled_stays_in_this_process() -> None:
    encoder: Any = LetterEncoder()
    encoder.callback = lambda: None
    assert as_values(encoded(batches(9), encoder)) == as_values(encoded(batches(9), LetterEncoder(), workers=1))


def test_rows_that_cannot_be_pickled_stay_in_this_process() -> None:
    rows = [[Row(str(b), "f", {"text": "abc", "more": lambda: None}, b)] for b in range(100)]
    made = encode_in_order(slowly(rows), LetterEncoder(), num_proc=2, n_rows=lambda: None, workers_pay_after=0)
    assert [batch.ids for batch in made] == [[str(b)] for b in range(100)]


def test_a_worker_that_is_killed_is_one_line_with_a_remedy() -> None:
    rows = [[Row(str(b), "f", {"text": "die"}, b)] for b in range(12_000)]  # on a busy machine workers start late
    made = encode_in_order(slowly(rows), LetterEncoder(die="die"), num_proc=2, n_rows=lambda: None, workers_pay_after=0)
    with pytest.raises(DataError, match=r"a tokenization worker was killed by signal 9; .* dataset\.num_proc"):
        list(made)


def test_few_rows_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    made = encode_in_order(iter(batches(20)), LetterEncoder(), num_proc=8, n_rows=lambda: 100)
    assert sum(len(batch.is_kept) for batch in made) == 100


SCRIPT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from reallm.data.rows import Row
from reallm.data.tokenization.parallel import encode_in_order
from tests.data.tokenization.encoders import LetterEncoder

def rows():
    for i in range(100000):
        time.sleep(0.02)
        yield [Row(str(i), "f", {"text": "abc"}, i)]

print("started", flush=True)
for batch in encode_in_order(rows(), LetterEncoder(), num_proc=2, n_rows=lambda: None, workers_pay_after=0):
    print(len(batch.ids), flush=True)
"""


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_workers_of_a_script_without_main_guard_die_with_it_and_do_not_run_it_again() -> None:
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen([sys.executable, "-", root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(SCRIPT)
    process.stdin.close()
    assert process.stdout.readline() == "started\n"
    assert process.stdout.readline() == "1\n"
    workers: set[int] = set()
    deadline = time.monotonic() + 240
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    assert "started" not in rest
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_empty_fields_of_a_batch_without_kept_rows() -> None:
    batch = encode_batch(LetterEncoder(), [Row("1", "f:1", {"text": WORDS[3]}, 0)])
    assert batch.fields == {}
    assert np.array_equal(batch.is_kept, [False])
