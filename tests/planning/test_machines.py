"""Machines: known ones by name, from YAML files, and the one that the tests run on."""

import pytest

from reallm.errors import ConfigError
from reallm.planning.find_machine import find_machine
from reallm.planning.known_machines import KNOWN
from reallm.planning.machine import Link

MACHINE = """\
n_nodes: 2
ranks_per_node: 8
memory: 80e9
host_memory: 2e11
flops: 6e14
memory_bandwidth: 3e12
within_node: {bandwidth: 3e11, latency: 1e-5}
between_nodes:
  bandwidth: 45e9
  latency: 2e-5
host: {bandwidth: 5e10, latency: 1e-5}
"""


def test_a_file_describes_a_machine(tmp_path):
    (tmp_path / "cluster.yaml").write_text(MACHINE)
    machine = find_machine(str(tmp_path / "cluster.yaml"), 32)
    assert (machine.name, machine.n_nodes, machine.n_ranks, machine.memory) == ("cluster", 4, 32, 80 * 10**9)
    assert machine.between_nodes == Link(45e9, 2e-5)
    assert machine.link([0, 7]) == machine.within_node
    assert machine.link([7, 8]) == machine.between_nodes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  latency",
            "  latencey",
            r":10: unknown key 'between_nodes.latencey'; did you mean 'between_nodes.latency'\?$",
        ),
        ("flops: 6e14\n", "", r"m.yaml: flops is required: floating-point operations per second"),
        ("6e14", "fast", r"m.yaml:5: flops=fast: must be a number$"),
        ("45e9", "0", r"m.yaml: between_nodes.bandwidth=0.0 must be more than 0$"),
        ("n_nodes: 2", "n_nodes: [", r"m.yaml:\d+: not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, old, new, message):
    file = tmp_path / "m.yaml"
    file.write_text(MACHINE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        find_machine(str(file))


def test_known_machines_are_found_by_name():
    assert find_machine("H100", 1024).n_nodes == 128
    assert find_machine("a100", 4).ranks_per_node == 4
    assert KNOWN["h200"].memory > KNOWN["h100"].memory
    with pytest.raises(ConfigError, match=r"--machine h10: not a known machine; did you mean 'h100'\?"):
        find_machine("h10")
    with pytest.raises(ConfigError, match="--ranks 12: nodes of h100 have 8 ranks; give a multiple of it"):
        find_machine("h100", 12)
    with pytest.raises(ConfigError, match=r"--machine no.yaml: there is no such file"):
        find_machine("no.yaml")


def test_ranks_share_this_machine():
    one, two = find_machine(n_ranks=1), find_machine(n_ranks=2)
    assert (two.n_ranks, two.name) == (2, one.name)
    assert two.memory < one.memory
