"""Processes that are started together end together, however one of them ends, and only they take part."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from reallm.launch import launcher
from reallm.launch.launcher import Launcher
from tests.helpers.hangup import hangup_by_default
from tests.helpers.jobs import ended_soon

SLEEP = "time.sleep(600)"


def launched(code: str, n: int = 3) -> launcher.WorkerExit | None:
    """How processes end that run some lines of Python in which `rank` is known."""
    program = f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{code}"
    return Launcher([sys.executable, "-c", program], n, os.environ).run()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 0.3)


def test_each_process_gets_its_rank(tmp_path: Path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launched(code) is None
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


def test_a_failed_process_ends_the_others():
    ended = launched(f"sys.exit(3) if rank == 1 else {SLEEP}")
    assert (ended.rank, ended.code, ended.signal_name, ended.reported) == (1, 3, None, False)


def test_of_several_that_end_the_killed_one_is_the_cause():
    ended = launched(f"os.kill(os.getpid(), signal.SIGKILL) if rank == 2 else {SLEEP}")
    assert (ended.rank, ended.code, ended.signal_name) == (2, -9, "SIGKILL")


class Signaller(threading.Thread):
    """Sends signals to this process, each once the folder has `n` files `<name>*`; then makes a file `sent` there."""

    def __init__(self, folder: Path, n: int, sent: Sequence[tuple[str, signal.Signals]]) -> None:
        super().__init__(daemon=True)
        self._folder, self._n, self._sent = folder, n, sent
        self.start()

    def run(self) -> None:
        for name, number in self._sent:
            while len(list(self._folder.glob(f"{name}*"))) < self._n:
                time.sleep(0.02)
            os.kill(os.getpid(), number)
        (self._folder / "sent").touch()


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGHUP, 2)])
def test_a_signal_reaches_all_processes_and_the_launcher_waits_for_them(
    tmp_path: Path, number: signal.Signals, times: int
):
    Signaller(tmp_path, n=2, sent=[("ready", number), ("asked", number)][:times])
    code = f"""
def stop(number, frame):
    open(f'{tmp_path}/asked{{rank}}', 'w').close()
    while not os.path.exists('{tmp_path}/sent'):
        time.sleep(0.02)
    time.sleep(1)  # longer than the grace for those who outlive a failure
    open(f'{tmp_path}/ended{{rank}}', 'w').close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open(f'{tmp_path}/ready{{rank}}', 'w').close()
{SLEEP}
"""
    with hangup_by_default():
        assert launched(code, n=2) is None
    assert len(list(tmp_path.glob("ended*"))) == 2


def test_after_a_second_signal_processes_are_killed(tmp_path: Path):
    Signaller(tmp_path, n=2, sent=[("ready", signal.SIGTERM), ("asked", signal.SIGTERM)])
    code = f"""
signal.signal(signal.SIGTERM, lambda number, frame: open(f'{tmp_path}/asked{{rank}}', 'w').close())
open(f'{tmp_path}/ready{{rank}}', 'w').close()
while True:
    {SLEEP}
"""
    ended = launched(code, n=2)
    assert ended.user_stopped
    assert ended.signal_name == "SIGKILL"


LISTENING = """
from datetime import timedelta
from pathlib import Path
import torch
from reallm.launch.job import Job
from reallm.launch.rank_env import RankEnv
job = Job.connect(RankEnv.from_environment(os.environ), timedelta(seconds=240))
with job.process_groups(torch.device("cpu"), timedelta(seconds=240)):
    sockets = {os.stat(f"/proc/{pid}/fd/{fd}").st_ino for pid in (os.getpid(), os.getppid())
               for fd in os.listdir(f"/proc/{pid}/fd") if os.path.exists(f"/proc/{pid}/fd/{fd}")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    found = [line[1].partition(":")[0] for line in lines if line[3] == "0A" and int(line[9]) in sockets]
    Path(sys.argv[1], f"{rank}").write_text(" ".join(found))
    job.any(False)
"""
LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as in /proc/net."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_nothing_of_a_job_on_one_machine_can_be_reached_from_another(tmp_path: Path):
    program = f"import os, sys\nrank = int(os.environ['RANK'])\n{LISTENING}"
    assert Launcher([sys.executable, "-c", program, str(tmp_path)], 2, os.environ).run() is None
    addresses = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    assert all(addresses), "gloo listens for the other rank"
    assert {address for on_rank in addresses for address in on_rank} <= LOOPBACK


def test_processes_end_with_a_launcher_that_is_killed_before_they_have_imported_anything(tmp_path: Path):
    holding_the_lock = "import ctypes; ctypes.PyDLL(None).sleep(600)"  # as an import of a large library does
    program = f"""
import os
from pathlib import Path
from reallm.launch.end_with_launcher import end_with_launcher
end_with_launcher()
Path({str(tmp_path)!r}, os.environ["RANK"] + ".new").write_text(str(os.getpid()))
Path({str(tmp_path)!r}, os.environ["RANK"] + ".new").rename(Path({str(tmp_path)!r}, os.environ["RANK"]))
{holding_the_lock}
"""
    launching = (
        "import os, sys; from reallm.launch.launcher import Launcher; Launcher(sys.argv[1:], 2, os.environ).run()"
    )
    starter = subprocess.Popen([sys.executable, "-c", launching, sys.executable, "-c", program])
    while len(list(tmp_path.glob("[01]"))) < 2:
        assert starter.poll() is None
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    for rank in range(2):
        ended_soon(int((tmp_path / str(rank)).read_text()))
