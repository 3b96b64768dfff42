"""The signals that stop a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from reallm.launch.signals import stop_requests, stop_signals
from tests.helpers.hangup import hangup_by_default


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_asks_to_stop_once_and_is_handled_as_before_afterwards(number: signal.Signals) -> None:
    with hangup_by_default():
        before = signal.getsignal(number)
        with stop_requests(announce=False) as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set()
        assert signal.getsignal(number) is before


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
        with stop_requests(announce=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


LEFT_TO_PARENT = """
import os, signal, subprocess, sys
from reallm.launch.signals import leave_signals_to_parent
leave_signals_to_parent()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
started = subprocess.run(["sh", "-c", "kill -TERM $$"]).returncode
sys.stdout.write(f"{forked} {started}")
"""


def test_a_process_that_leaves_signals_to_its_parent_goes_on_and_those_that_it_starts_do_not() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_TO_PARENT], capture_output=True, text=True, check=True)
    assert done.stdout == f"{-signal.SIGTERM} {-signal.SIGTERM}"
