"""Two network namespaces of one machine as two nodes, joined by a cable of their own: the same command line on both."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.jobs import Command, make_inputs, sft

TIMEOUT_S = 200.0
PORT = itertools.count(29610)


@dataclass(frozen=True)
class Node:
    rank: int
    namespace: str
    interface: str
    address: str

    def start(self, folder: Path, arguments: Sequence[str], first: Node, port: int, launcher: str) -> Command:
        """The command with which this node joins the job of two processes, one on each."""
        environment = {"GLOO_SOCKET_IFNAME": self.interface}
        under: list[str] = []
        if launcher == "torchrun":
            under = [
                *("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={self.rank}", "--nproc-per-node=1"),
                *(f"--master-addr={first.address}", f"--master-port={port}"),
            ]
        else:  # what srun sets, and what its user is told to set
            environment |= {"SLURM_PROCID": str(self.rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
            environment |= {"MASTER_ADDR": first.address, "MASTER_PORT": str(port)}
        return Command(folder, arguments, environment, under=under, through=["ip", "netns", "exec", self.namespace])

    def plug(self, state: str) -> None:
        """Plug the cable in, `up`, or out, `down`."""
        _ip("-n", self.namespace, "link", "set", self.interface, state)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2: run as root where `ip netns add` works")
    tag = f"reallm{os.getpid()}"
    nodes = [Node(n, f"{tag}{side}", f"v{os.getpid()}{side}", f"10.77.0.{n + 1}") for n, side in enumerate("ab")]
    for node in nodes:
        _ip("netns", "add", node.namespace)
    try:
        _ip("link", "add", nodes[0].interface, "type", "veth", "peer", "name", nodes[1].interface)
        for node in nodes:
            _ip("link", "set", node.interface, "netns", node.namespace)
            _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.namespace, "link", "set", "lo", "up")
            node.plug("up")
        yield nodes
    finally:
        for node in nodes:
            _ip("netns", "del", node.namespace)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def started(nodes: list[Node], folder: Path, arguments: Sequence[str], launcher: str) -> list[Command]:
    """The command on both nodes."""
    port = next(PORT)
    return [node.start(folder, arguments, nodes[0], port, launcher) for node in nodes]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "checkpoints" / "last").glob("*.safetensors"))
    assert files, f"{run} has no checkpoint"
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
@pytest.mark.parametrize("layout", ["parallel.dp=2", "parallel.tp=2", "parallel.pp=2"])
def test_two_nodes_train_as_one_does(nodes, inputs, tmp_path, layout, launcher):
    one = Command(tmp_path, sft(inputs, tmp_path, "name=one", layout)).end(TIMEOUT_S)
    assert one.code == 0, one.err
    first, second = [
        command.end(TIMEOUT_S)
        for command in started(nodes, tmp_path, sft(inputs, tmp_path, "name=two", layout), launcher)
    ]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert " on 2 processes" in first.out
    assert second.out == ""
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected), "the same layout, the same numbers"


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_when_the_cable_is_pulled_both_nodes_give_up_and_say_whom_they_miss(nodes, inputs, tmp_path, launcher):
    arguments = sft(inputs, tmp_path, "name=cut", "parallel.dp=2", "epochs=100000", "parallel.timeout_s=10")
    commands = started(nodes, tmp_path, arguments, launcher)
    commands[0].wait_for("step 1/")
    nodes[1].plug("down")
    try:
        first, second = [command.end(TIMEOUT_S) for command in commands]
    finally:
        nodes[1].plug("up")
    assert 0 not in (first.code, second.code)
    (line,) = [line for line in first.errors if line.startswith("error: ")]
    assert line.startswith("error: rank 1 (process ")
    assert " did not answer in time" in line
    # it cannot know more: of rank 0, its launcher and the network one does not answer
    (line,) = [line for line in second.errors if line.startswith("error: ")]
    assert line.startswith("error: rank 0 or its launcher, at 10.77.0.1:")


def test_a_process_that_is_killed_on_one_node_is_named_on_the_other(nodes, inputs, tmp_path):
    arguments = sft(inputs, tmp_path, "name=killed", "parallel.dp=2", "epochs=100000")
    commands = started(nodes, tmp_path, arguments, "srun")
    commands[0].wait_for("step 1/")
    commands[1].process.send_signal(signal.SIGKILL)
    first, second = [command.end(TIMEOUT_S) for command in commands]
    assert (first.code, second.code) == (2, -signal.SIGKILL)
    (line,) = first.errors
    assert line.startswith(f"error: rank 1 (process {commands[1].process.pid} on ")
