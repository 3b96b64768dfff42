"""Masks, and ALiBi: the slopes are those of transformers, and blocks share what they add to scores."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

from reallm.model.attention import masks
from reallm.model.attention.functional import AttentionSpec
from reallm.model.attention.masks import CausalMasks, alibi_slopes, causal_mask, rows_mask
from reallm.model.layers import PerHead
from reallm.model.transformer import Transformer
from reallm.parallel.tensor_parallel.apply import apply_tensor_parallel
from reallm_devkit.testing.families.split_run import DeclaredSharding
from tests.helpers.tiny_config import TINY


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 20, 71, 112])
def test_slopes_are_those_of_transformers(n_heads: int) -> None:
    found = torch.tensor(alibi_slopes(n_heads, scale=0.5), dtype=torch.float32)
    torch.testing.assert_close(found, 0.5 * _get_alibi_slopes(n_heads, torch.device("cpu")))


def test_a_mask_is_minus_the_distance_times_the_slope_within_the_window() -> None:
    mask = causal_mask(2, 4, 3, torch.float32, torch.device("cpu"), (1.0, 0.5))
    inf = float("inf")
    assert mask.tolist() == [[[-2, -1, 0, -inf], [-inf, -2, -1, 0]], [[-1, -0.5, 0, -inf], [-inf, -1, -0.5, 0]]]
    rows = rows_mask([4, 3], 1, 4, None, torch.float32, torch.device("cpu"), (1.0, 0.5))
    assert rows.tolist() == [[[-2, -1, 0], [-1, 0, -inf]], [[-1, -0.5, 0], [-0.5, 0, -inf]]]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("slopes", [None, (1.0, 0.25)])
def test_shared_masks_are_parts_of_one(
    monkeypatch: pytest.MonkeyPatch, window: int | None, slopes: tuple[float, ...] | None
) -> None:
    monkeypatch.setattr(masks, "CHUNK", 4)
    shared, spec, like = CausalMasks(21), AttentionSpec(1.0, window, slopes=slopes), torch.empty(1)
    for n_queries, n_keys in [(4, 4), (4, 10), (3, 9), (1, 1)]:
        expected = causal_mask(n_queries, n_keys, window, like.dtype, like.device, slopes)
        assert torch.equal(shared(n_queries, n_keys, spec, like), expected)
    assert shared(4, 10, spec, like).data_ptr() == shared(4, 10, spec, like).data_ptr()
    if slopes:
        assert len({shared(n, 9, spec, like).untyped_storage().data_ptr() for n in (1, 2, 4)}) == 1


class Peers:
    """One of several ranks, which communicates with none."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_rank_has_the_constants_of_its_heads(tp: int) -> None:
    found = []
    for rank in range(tp):
        model = Transformer(TINY.replace(rope=None, alibi_scale=1.0))
        attn = model.layers["1"].attn
        attn.of_kv_heads = PerHead([[0.5, 1.0], [2.0, 3.0]])
        declared = DeclaredSharding.of(model)
        apply_tensor_parallel(model, Peers(rank, tp), declared.boxes(model, tp), declared.shards, declared.splits)
        assert attn.slopes(torch.empty(1, dtype=torch.float64)).dtype == torch.float64
        found.append((attn.slopes.values, attn.of_kv_heads(torch.empty(1)).tolist()))
    assert sum((slopes for slopes, _ in found), ()) == alibi_slopes(4)
    assert [of_kv for _, of_kv in found] == {
        1: [[[0.5, 1.0], [2.0, 3.0]]],
        2: [[[0.5, 1.0]], [[2.0, 3.0]]],
        4: [[[0.5, 1.0]], [[0.5, 1.0]], [[2.0, 3.0]], [[2.0, 3.0]]],
    }[tp]
    assert not [name for name, _ in Transformer(TINY.replace(alibi_scale=1.0)).named_parameters() if "slopes" in name]


def test_scores_get_no_bias_without_a_scale() -> None:
    assert AttentionSpec.of_block(TINY, 0).slopes is None
    assert AttentionSpec.of_block(TINY.replace(alibi_scale=2.0), 0).slopes == alibi_slopes(4, 2.0)
