"""The machine that `--machine` names, with as many ranks as `--ranks` says. Imports torch only for this machine."""

from __future__ import annotations

from pathlib import Path

from reallm.planning.known_machines import known_machine, with_ranks
from reallm.planning.machine import Machine
from reallm.planning.machine_file import read_machine


def find_machine(text: str | None = None, n_ranks: int | None = None, key: str = "--machine ") -> Machine:
    """A machine, by name, from a file, or this one.

    Args:
        text: the name of a known machine such as `h100`, or the path of a YAML file; None: the machine that this
            process runs on.
        n_ranks: number of ranks, in whole nodes or in a part of one node; None: as many as the machine has.
        key: what an error writes before a name that is not known.

    Raises:
        ConfigError: there is no such machine, its file has a mistake, or the ranks do not fill nodes.
    """
    if text is None:
        from reallm.planning.this_machine import this_machine

        return this_machine(n_ranks)
    path = Path(text)
    machine = read_machine(path) if path.suffix in (".yaml", ".yml") or path.exists() else known_machine(text, key)
    return machine if n_ranks is None else with_ranks(machine, n_ranks)
