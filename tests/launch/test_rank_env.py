"""Ranks from the variables of torchrun and srun, and the layout of so many processes."""

import pytest

from reallm.config.parallel import ParallelArgs
from reallm.errors import ConfigError
from reallm.launch.rank_env import RankEnv
from reallm.parallel.layout import Layout

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "4",
    "MASTER_ADDR": "node0",
}  # fmt: skip


def test_torchrun():
    env = RankEnv.from_environment(TORCHRUN)
    assert env == RankEnv(5, 8, 1, 4, "node0", 1234, is_store_server=False)


def test_our_launcher():
    env = RankEnv(1, 2, 1, 2, "127.0.0.1", 29500, is_store_server=False, store_file="/proc/self/fd/5")
    assert RankEnv.from_environment(env.to_environment()) == env
    assert env.is_on_one_machine


def test_srun_counts_with_an_address():
    assert RankEnv.from_environment(SRUN) == RankEnv(0, 8, 0, 4, "node0", 29500, is_store_server=True)
    assert not RankEnv.from_environment(SRUN | {"SLURM_PROCID": "3"}).is_store_server
    without = {name: value for name, value in SRUN.items() if name != "MASTER_ADDR"}
    assert RankEnv.from_environment(without) is None, "an allocation in which something is started by hand"


def test_alone():
    assert RankEnv.from_environment({"PATH": "/bin"}) is None
    assert RankEnv.from_environment(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many in the environment must be a whole number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port that others can find"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE=8, but MASTER_ADDR is not set"),
    ],
)
def test_variables_that_do_not_fit(changed, message):
    environment = {name: value for name, value in (TORCHRUN | changed).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        RankEnv.from_environment(environment)


def test_dp_is_what_is_left():
    args = ParallelArgs(pp=2, tp=2)
    assert args.n_processes == 4
    assert args.layout(8) == Layout(dp=2, pp=2, tp=2, fsdp=True)
    assert args.layout(8, trained=False) == Layout(dp=2, pp=2, tp=2)
    assert ParallelArgs().layout(1) == Layout()


@pytest.mark.parametrize(
    ("args", "n", "message"),
    [
        (
            ParallelArgs(dp=2, tp=2),
            3,
            "parallel.dp=2 parallel.tp=2 takes 4 processes, but 3 were started; start as many "
            "(torchrun --nproc-per-node), or change the sizes",
        ),
        (ParallelArgs(tp=2), 1, "parallel.tp=2 takes 2 processes or a multiple of it, but 1 was started"),
        (ParallelArgs(pp=3), 8, "parallel.pp=3 takes 6 processes or a multiple of it, but 8 were started"),
        (ParallelArgs(dp=1), 2, "parallel.dp=1 takes 1 process, but 2 were started"),
    ],
)
def test_sizes_that_do_not_fit_the_processes(args, n, message):
    with pytest.raises(ConfigError) as caught:
        args.layout(n)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("name", "value"), [("dp", 0), ("tp", -1), ("timeout_s", 0.0)])
def test_sizes_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value} must be"):
        ParallelArgs(**{name: value})
