"""Ranks that differ, and which one reports an error. The ranks are threads: all they share is a store."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from reallm.errors import ConfigError, DataError, PeerError
from reallm.launch import failure
from reallm.launch.consistency import Difference, check_same_on_all_ranks, first_difference
from reallm.launch.failure import is_peer_error, message_to_print
from reallm.launch.job import Job
from reallm.launch.store import StoreWithTimeout

SOON = timedelta(seconds=240)


def on_threads(n: int, work: Callable[[Job], Any]) -> list[Any]:
    """What `work` gives, or raises, on each rank."""
    store = dist.HashStore()

    def one(rank: int) -> Any:
        try:
            return work(Job(rank, n, rank, n, store))
        except Exception as error:
            return error

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


def test_the_first_difference_in_the_order_of_rank_0():
    same = {"dp": "2", "seed": "1"}
    assert first_difference([same, dict(reversed(same.items())), same]) is None
    assert first_difference([same, same, {"dp": "3", "seed": "2"}]) == Difference("dp", 2, "3", "2")
    assert first_difference([same, {"dp": "2"}]) == Difference("seed", 1, "nothing", "1")
    assert first_difference([{"dp": "2"}, same]) == Difference("seed", 1, "1", "nothing")


def test_all_ranks_raise_the_same_line():
    def work(job: Job) -> None:
        check_same_on_all_ranks(job, "settings", {"lr": "0.1", "seed": "2" if job.rank == 1 else "1"}, SOON)

    errors = on_threads(3, work)
    assert {type(error) for error in errors} == {ConfigError}
    assert {str(error) for error in errors} == {
        "seed is 2 on rank 1 and 1 on rank 0; all processes of a job must have the same settings, packages and files"
    }


def test_equal_ranks_continue_and_can_compare_again():
    def work(job: Job) -> str:
        check_same_on_all_ranks(job, "settings", {"lr": "0.1"}, SOON)
        check_same_on_all_ranks(job, "data", {"checksum": "abc"}, SOON)
        return "done"

    assert on_threads(3, work) == ["done"] * 3


def test_a_rank_that_does_not_come_is_named():
    def work(job: Job) -> None:
        if job.rank == 0:
            assert job.wait_for("values/settings/1", SOON)
            check_same_on_all_ranks(job, "settings", {}, timedelta(seconds=0.2))
        elif job.rank == 1:
            check_same_on_all_ranks(job, "settings", {}, SOON)

    first, second, _ = on_threads(3, work)
    assert str(first) == str(second)
    assert isinstance(first, PeerError)
    assert str(first).startswith("rank 2 (never seen) has not shown up within 0.2 s")


def test_all_ranks_get_the_value_of_rank_0():
    assert on_threads(3, lambda job: job.broadcast_from_rank0(lambda: {"path": job.rank}, SOON)) == [{"path": 0}] * 3
    assert Job().broadcast_from_rank0(lambda: "alone", SOON) == "alone"


def test_if_rank_0_fails_the_others_do_not_wait():
    def fails() -> None:
        raise DataError("no such folder")

    first, second = on_threads(2, lambda job: job.broadcast_from_rank0(fails, SOON))
    assert isinstance(first, DataError)
    assert is_peer_error(second)


def test_waiting_for_rank_0_times_out():
    asked = threading.Event()

    def work(job: Job) -> None:
        try:
            job.broadcast_from_rank0(asked.wait, timedelta(seconds=0.2))
        finally:
            asked.set()

    first, second = on_threads(2, work)
    assert first is None
    assert isinstance(second, PeerError)
    assert str(second).startswith("rank 0 (never seen) did not answer within 0.2 s")


def waiting(monkeypatch: pytest.MonkeyPatch, *, for_rank0: float = 60.0, for_cause: float = 60.0) -> None:
    """Ranks wait so many seconds for another one to report; a minute only if none does."""
    monkeypatch.setattr(failure, "WAIT_FOR_RANK0_S", for_rank0)
    monkeypatch.setattr(failure, "WAIT_FOR_CAUSE_S", for_cause)


def test_rank_0_reports_an_error_that_all_ranks_have(monkeypatch: pytest.MonkeyPatch):
    waiting(monkeypatch)
    assert on_threads(3, lambda job: message_to_print(job, ConfigError("lr=0"))) == ["lr=0", None, None]


def test_a_rank_reports_an_error_that_it_alone_has(monkeypatch: pytest.MonkeyPatch):
    def work(job: Job) -> str | None:
        lost = RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]:35187")
        return message_to_print(job, DataError("no such file") if job.rank == 2 else lost)

    waiting(monkeypatch, for_rank0=0.1)
    assert on_threads(3, work) == [None, None, "rank 2: no such file"]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            "gloo: Timed out waiting 5000ms for recv operation to complete",
            "did not answer in time; see what it is waiting for, or raise parallel.timeout_s",
        ),
        (
            "gloo: Connection closed by peer [10.0.0.2]:35187",
            "cannot be reached any more; see whether it has ended, or its machine",
        ),
    ],
)
def test_a_rank_that_does_not_answer_is_named(n, lost, message, monkeypatch: pytest.MonkeyPatch):
    others = threading.Barrier(n - 1, timeout=60)

    def work(job: Job) -> str | None:
        job.set(f"process/{job.rank}", f"node7 {job.rank + 100}")
        if job.rank == 1:
            return None
        job.set(f"lost_a_peer/{job.rank}", "")  # which they do themselves, but not at the same time
        others.wait()
        return message_to_print(job, RuntimeError(lost))

    waiting(monkeypatch, for_cause=0.1)
    reported = [text for text in on_threads(n, work) if text]
    assert reported == [f"rank 1 (process 101 on node7) {message}"]


class StoppedStore:
    """A store that does not answer any more."""

    def check(self, keys: list[str]) -> bool:
        threading.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_store_that_does_not_answer_is_reported_once_and_no_rank_hangs(rank):
    store = StoreWithTimeout(StoppedStore(), "rank 0 or its launcher, at node7:29500,", timedelta(seconds=0.2))
    lost = RuntimeError("gloo: Timed out waiting 5000ms for recv operation to complete")
    reported = message_to_print(Job(rank, 3, rank, 3, store), lost)
    line = "rank 0 or its launcher, at node7:29500, has not answered for 0.2 s; see what it is waiting for"
    assert reported == (line if rank <= 1 else None)


def test_an_error_of_the_store_is_raised_in_the_caller():
    store = StoreWithTimeout(dist.HashStore(), "rank 0")
    assert store.add("n", 2) == 2
    with pytest.raises(TypeError):
        store.add("n", "two")
    assert store.add("n", 1) == 3


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (PeerError("stage 1 has gone"), True),
        (dist.DistNetworkError("failed to recv"), True),
        (RuntimeError("Connection closed by peer"), True),
        (RuntimeError("shapes do not match"), False),
        (DataError("no such file"), False),
    ],
)
def test_errors_that_mean_that_a_peer_is_gone(error, is_so):
    assert is_peer_error(error) is is_so
