"""Checks of a dataset in other processes, and of its side effects on this one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from pathlib import Path

from reallm.new_python import module_command
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.common_checks import subprocess_environment
from reallm_devkit.testing.datasets.items import same_twice, sample
from reallm_devkit.testing.datasets.order import seed
from reallm_devkit.testing.datasets.subject import DatasetSubject, digest, first_difference, read_samples, sample_name
from reallm_devkit.testing.process_state import STATE
from reallm_devkit.testing.scratch import scratch_folder

TIMEOUT_S = 300


@check(needs=[same_twice])
def pickling(subject: DatasetSubject) -> str:
    """the dataset can be pickled, as the worker processes of a data loader need it"""
    look_at = subject.at("__init__")
    try:
        content = pickle.dumps(subject.samples)
        again = read_samples(pickle.loads(content))  # pickled in the line before
    except Exception as error:  # pickle and the pickled classes may raise anything
        raise CheckFailed(pickling.promise, f"{type(error).__name__}: {error}", look_at=look_at) from error
    different = first_difference(subject.items, again)
    if different:
        raise CheckFailed(*different, look_at)
    return f"{len(content):,} bytes"


@check(needs=[pickling, seed])
def another_process(subject: DatasetSubject) -> str:
    """another process reads the same samples, from the pickled dataset and from one it constructs itself"""
    if subject.cls.__module__ == "__main__":
        raise Skipped("put the class in a module, so that another process can import it")
    with scratch_folder() as folder:
        construct_args = (subject.title, subject.spec, subject.util(), dict(subject.args))
        try:
            content = pickle.dumps((subject.samples, construct_args))
        except Exception as error:  # not the samples, which could be pickled before
            raise Skipped(f"an argument cannot be pickled ({type(error).__name__}); give the file's path") from error
        (folder / "dataset").write_bytes(content)
        found = _read_in_child(folder / "dataset", folder / "digests")
    expected_digests = [digest(item) for item in subject.items]
    for how, look_at in (("pickled", subject.at("__getitem__")), ("constructed", subject.at("__init__"))):
        if found[how] != expected_digests:
            pairs = zip(expected_digests, found[how], strict=False)
            number = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
            where = "" if number is None else sample_name(number, subject.items[number])
            seen = f"{len(found[how])} samples" if number is None else "another sample"
            expected = f"the {len(expected_digests)} samples of this process from the dataset {how} there"
            hint = "; does it depend on the order of a set?" if how == "constructed" else ""
            raise CheckFailed(expected, seen + hint, where, look_at)
    return f"{len(expected_digests)} samples, with another hash seed"


@check(needs=[sample])
def side_effects(subject: DatasetSubject) -> str:
    """neither constructing nor reading it changes random generators, environment, working directory or default dtype"""
    for method, changed in subject.side_effects.items():
        if changed:
            where = "constructing the dataset" if method == "__init__" else "reading its samples"
            raise CheckFailed(f"{changed[0]} as before", "it has changed", where, subject.at(method))
    return f"{len(STATE)} things as they were, among them {', '.join(STATE[:3])}"


def _read_in_child(pickled: Path, digests_path: Path) -> dict[str, list[str]]:
    variables = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*module_command("reallm_devkit.testing.datasets.child"), str(pickled), str(digests_path)]
    done = subprocess.run(
        command, env=subprocess_environment(**variables), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckFailed(another_process.promise, f"it ended with {lines[-1]}")
    digests: dict[str, list[str]] = json.loads(digests_path.read_text(encoding="utf-8"))
    return digests
