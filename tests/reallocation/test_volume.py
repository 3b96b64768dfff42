"""The volume of a reallocation, computed from sizes alone, is that of its plan."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reallm.errors import ConfigError
from reallm.model.config import MoEConfig
from reallm.parallel.layout import Layout
from reallm.reallocation.plan import plan
from reallm.reallocation.volume import volume
from tests.reallocation.test_plan import LLAMA_70B, SMALL, fits

EXPERTS = SMALL.replace(moe=MoEConfig(n_experts=4, top_k=2, layers=(1, 3)), tied_embeddings=False)
SIZES = [(dp, pp, tp) for dp in (1, 2, 3, 4) for pp in (1, 2, 3, 4) for tp in (1, 2, 4) if dp * pp * tp <= 12]


@st.composite
def layouts(draw):
    dp, pp, tp = draw(st.sampled_from(SIZES))
    first = draw(st.sampled_from([0, 1, 4, 12]))
    ranks = tuple(range(first, first + dp * pp * tp))
    return Layout(dp, pp, tp, fsdp=draw(st.booleans()), ranks=ranks)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([SMALL, EXPERTS]), layouts(), layouts())
def test_volume_is_that_of_the_plan(config, source, target):
    assume(fits(config, source) and fits(config, target))
    found, planned = volume(config, source, target), plan(config, source, target)
    assert found.total == planned.lower_bound == planned.total_elements
    assert found.max_received == max(map(planned.received_elements, planned.ranks))
    assert found.min_max_sent <= planned.min_max_sent * (1 + 1e-9)


def test_lower_bound_of_the_busiest_sender_is_near_that_of_the_plan():
    source, target = Layout.parse("pp2tp2fsdp2"), Layout.parse("dp4tp2@8-15")
    assert volume(SMALL, source, target).min_max_sent >= 0.8 * plan(SMALL, source, target).min_max_sent


def test_layout_that_does_not_fit():
    with pytest.raises(ConfigError, match="pp=5 stages are too many"):
        volume(SMALL, Layout.parse("pp5"), Layout.parse("dp1"))


def test_elements_of_large_model_that_other_ranks_need():
    """All parameters once for each replica."""
    target = Layout.parse("tp8dp64@512-1023")
    found = volume(LLAMA_70B, Layout.parse("pp8tp8fsdp8"), target)
    assert found.total == plan(LLAMA_70B, Layout.parse("tp8"), Layout.parse("tp8@8-15")).lower_bound * 64
