"""Reallocations of some ranks of a job: others need not know of them, and are not disturbed when one fails."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import PeerError
from reallm.model.config import ReaLModelConfig
from reallm.parallel.mesh import Mesh
from tests.helpers.ranks import on_ranks
from tests.helpers.waiting import wait_until
from tests.reallocation.test_reallocate import CONFIG, are_equal, copies, differing

TIMEOUT = timedelta(seconds=4)


def check_moves(config: ReaLModelConfig, seed: int, layouts: list[str], *, checksum: bool = False) -> None:
    """Move a model from layout to layout and compare it with the whole one each time."""
    whole, model = ReaLModel(config, seed=seed), ReaLModel(config, seed=seed, mesh=Mesh.of(layouts[0]))
    for layout in layouts[1:]:
        model = model.reallocate(layout, checksum=checksum)
        assert (layout, differing(model, whole)) == (layout, [])


def move_side_by_side(rank: int) -> None:
    torch.set_num_threads(1)
    if rank < 2:
        check_moves(CONFIG, 3, ["tp2@0-1", "pp2@0-1", "dp1@1"])
    else:
        for seed in (4, 5):  # with new meshes, and so new process groups, for each model
            check_moves(CONFIG, seed, ["pp2@2-3", "tp2@2-3", "dp1@2", "fsdp2@2-3", "tp2@2-3"], checksum=seed == 5)
    # Groups that differ in number on these ranks by now do not keep them from moving a model together.
    check_moves(CONFIG, 6, ["tp2@0,2", "dp3@0,2,3"] if rank != 1 else ["dp1@1"])


def test_disjoint_ranks_move_models_side_by_side_without_a_common_call():
    on_ranks(4, move_side_by_side)


def lose_rank_1(rank: int, folder: Path, has_moved_before: bool) -> str:
    """Rank 0 waits for rank 1, which does not come; ranks 2 and 3 move a model meanwhile and afterwards."""
    torch.set_num_threads(1)
    failed = folder / "failed"
    if rank >= 2:
        check_moves(CONFIG, 4, ["tp2@2-3", "pp2@2-3"])
        wait_until(failed.exists)
        check_moves(CONFIG, 4, ["tp2@2-3", "pp2@2-3"])
        check_moves(CONFIG, 4, ["tp2@2-3", "dp3@0,2,3"])
        return ""
    model = ReaLModel(CONFIG, seed=3, mesh=Mesh.of("tp2@0-1", timeout=TIMEOUT))
    target = ReaLModel(CONFIG, seed=4, mesh=Mesh.of("dp2@0-1", timeout=TIMEOUT))
    if has_moved_before:
        model.reallocate(target.mesh, into=target)
    if rank == 1:
        wait_until(failed.exists)
        return ""
    before = copies(model)
    with pytest.raises(PeerError) as caught:
        model.reallocate(target.mesh, into=target)
    failed.touch()
    assert are_equal(copies(model), before)
    check_moves(CONFIG, 4, ["tp2@2-3", "dp3@0,2,3"])  # this rank can still work with the others
    return str(caught.value)


@pytest.mark.parametrize("has_moved_before", [False, True], ids=["never-there", "lost-later"])
def test_a_missing_rank_is_named_and_does_not_disturb_other_ranks(tmp_path, has_moved_before):
    error, *_ = on_ranks(4, lose_rank_1, tmp_path, has_moved_before)
    assert error.startswith("rank 0 waited ")
    assert "s for rank 1 to " in error
    assert "'layers." in error


def call_with_another_eta(rank: int) -> str:
    torch.set_num_threads(1)
    if rank < 2:
        return ""
    model, target = (ReaLModel(CONFIG, seed=seed, mesh=Mesh.of("tp2@2-3")) for seed in (3, 4))
    with pytest.raises(PeerError) as caught:
        model.reallocate("tp2@2-3", into=target, eta=0.5 if rank == 2 else 0.25)
    return str(caught.value)


def test_other_arguments_on_one_rank_are_found():
    errors = on_ranks(4, call_with_another_eta)[2:]
    said = (
        "rank 3 moves parameters with other settings (dtype, eta, checksum) than rank 2; all ranks must make the same"
    )
    assert set(errors) == {f"{said} call"}
