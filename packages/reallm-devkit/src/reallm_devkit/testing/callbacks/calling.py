"""Checks of the methods that a run calls, and of the state that is saved with it."""

from __future__ import annotations

import json
from typing import Any

from reallm.errors import did_you_mean
from reallm.experiments.run.callbacks import HOOKS
from reallm_devkit.testing.callbacks.subject import EVERY, N_STEPS, CallbackSubject, FakeRun
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.process_state import call_and_compare
from reallm_devkit.testing.scratch import scratch_folder


@check()
def construction(subject: CallbackSubject) -> str:
    """it is made without arguments, and each of its methods `on_...` is one that a run calls"""
    callback = subject.cls()
    methods = [name for name in dir(callback) if name.startswith("on_")]
    for name in methods:
        if name not in HOOKS:
            seen = f"{name}{did_you_mean(name, HOOKS)}"
            raise CheckFailed(f"methods among {', '.join(HOOKS)}", seen, look_at=subject.at(name))
    if not methods:
        raise CheckFailed(f"one of the methods {', '.join(HOOKS)}", "none", look_at=subject.at("__init__"))
    return f"{subject.cls.__qualname__} has {', '.join(methods)}"


@check(needs=[construction])
def run(subject: CallbackSubject) -> str:
    """a run can call its methods in the order of training, on rank 0 and on another rank"""
    asked = []
    for rank in (0, 1):
        with scratch_folder() as folder:
            view = FakeRun(folder, rank=rank, n_ranks=2)
            subject.train(subject.cls(), view)
            asked += [f"{what} at step {step}" for step, what in view.requests]
    return f"{N_STEPS} steps" + (f"; it asks to {', '.join(dict.fromkeys(asked))}" if asked else "")


@check(needs=[run])
def side_effects(subject: CallbackSubject) -> str:
    """it does not change random generators, environment, working directory or default dtype"""

    def call() -> None:
        with scratch_folder() as folder:
            subject.train(subject.cls(), FakeRun(folder))

    _, changed = call_and_compare(call)
    if changed:
        raise CheckFailed("the state of the process as before", f"changes {' and '.join(changed)}")
    return "none"


@check(needs=[run])
def state(subject: CallbackSubject) -> str:
    """`state()` is JSON, and `load_state` restores it in a new instance"""
    with scratch_folder() as folder:
        callback = subject.cls()
        subject.train(callback, FakeRun(folder), until=EVERY)
    saved = _state(subject, callback)
    restored = subject.cls()
    restored.load_state(json.loads(json.dumps(saved)))
    again = _state(subject, restored)
    if again != saved:
        raise CheckFailed(f"the state {saved}", f"{again}", "after load_state", subject.at("load_state"))
    return f"{saved}"


@check(needs=[state])
def resume(subject: CallbackSubject) -> str:
    """resumed after any save, it asks for what it would have asked for without an interruption"""
    with scratch_folder() as folder:
        whole = FakeRun(folder)
        subject.train(subject.cls(), whole)
        for stop in range(EVERY, N_STEPS, EVERY):
            first, second = subject.cls(), subject.cls()
            begun = FakeRun(folder)
            subject.train(first, begun, until=stop)
            second.load_state(_state(subject, first))
            resumed = FakeRun(folder, step=stop, metrics=dict(begun.metrics))
            subject.train(second, resumed)
            expected = [(step, what) for step, what in whole.requests if step > stop]
            if resumed.requests != expected:
                raise CheckFailed(
                    f"the requests {expected}", f"{resumed.requests}", f"resumed after step {stop}", subject.at("state")
                )
    return f"after steps {', '.join(map(str, range(EVERY, N_STEPS, EVERY)))}"


def _state(subject: CallbackSubject, callback: Any) -> Any:
    """The state of a callback as it is read back from the file of a save."""
    if not hasattr(callback, "state") or not hasattr(callback, "load_state"):
        raise Skipped("it has no methods state and load_state")
    found = callback.state()
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise CheckFailed("a state of JSON types", f"{error}", look_at=subject.at("state")) from error
