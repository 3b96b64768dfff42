"""The order of calls and moves: as early as weights are final, and never in the way of a call."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.schedule import Action, Compute, Copy, Move, Offload, Reload, Update, schedule
from reallm.parallel.layout import Layout
from reallm.specs import ModelFunctionCall, WeightUpdate

TOKENS = ("input_ids",)
PPO = Graph.from_calls(
    (
        ModelFunctionCall("actor_gen", "actor", "generate", ("prompt_ids",), TOKENS),
        ModelFunctionCall("rew_inf", "reward", "inference", TOKENS, ("scores",)),
        ModelFunctionCall("ref_inf", "ref", "inference", TOKENS, ("ref_logprobs",)),
        ModelFunctionCall("critic_inf", "critic", "inference", TOKENS, ("values",)),
        ModelFunctionCall("actor_train", "actor", "train_step", (*TOKENS, "scores", "ref_logprobs", "values")),
        ModelFunctionCall("critic_train", "critic", "train_step", (*TOKENS, "scores", "ref_logprobs", "values")),
    )
)
FOLLOW = WeightUpdate("ref", eta=0.5)


def placement(
    layouts: Mapping[str, str], offloaded: Collection[str] = (), graph: Graph = PPO, prefetched: Collection[str] = ()
) -> Placement:
    whole = {call.name: Layout.parse(layouts.get(call.name, "dp4")) for call in graph.calls}
    return Placement.from_layouts(graph, whole, 4, frozenset(offloaded), frozenset(prefetched))


def behind(where: Placement) -> list[Copy]:
    """All copies but the homes, as at the beginning of a run."""
    return [(role, layout) for role in where.graph.roles for layout in where.copies(role)[1:]]


def words(actions: Sequence[Action]) -> list[str]:
    """`actor_gen`, `actor to dp1@0`, `actor_train moves ref`, `actor_gen out`, `actor_gen in`."""
    return [
        action.call.name
        if isinstance(action, Compute)
        else f"{action.role} to {action.layout.short}"
        if isinstance(action, Move)
        else f"{action.call.name} moves {action.update.target}"
        if isinstance(action, Update)
        else f"{action.call.name} {'in' if isinstance(action, Reload) else 'out'}"
        for action in actions
    ]


def steady(where: Placement, updates: Mapping[str, Sequence[WeightUpdate]] | None = None) -> list[str]:
    """A step after others."""
    return words(schedule(where, PPO.calls, (), {} if updates is None else updates))


def test_all_weights_are_moved_first_in_the_first_step() -> None:
    where = placement(
        {"actor_gen": "dp2@0-1", "actor_train": "tp2@2-3", "critic_inf": "dp1@0", "critic_train": "dp1@1"}
    )
    assert words(schedule(where, PPO.calls, behind(where), {}))[:3] == [
        "actor to dp2",
        "critic to dp1",
        "actor_gen",
    ]


def test_weights_are_moved_as_soon_as_they_are_final_and_all_ranks_are_free() -> None:
    where = placement({"actor_gen": "dp1@0", "actor_train": "dp1@1", "critic_train": "dp1@2", "critic_inf": "dp1@3"})
    assert steady(where)[-4:] == ["actor_train", "actor to dp1", "critic_train", "critic to dp1@3"]


def test_a_move_waits_for_the_calls_of_its_ranks() -> None:
    where = placement(
        {"actor_gen": "dp2@2-3", "actor_train": "dp2@0-1", "critic_train": "dp2@2-3", "critic_inf": "dp2@2-3"}
    )
    assert steady(where)[-3:] == ["actor_train", "critic_train", "actor to dp2@2-3"]


def test_an_offloaded_copy_gets_its_weights_just_before_its_call() -> None:
    where = placement({"critic_inf": "dp1@3", "critic_train": "dp1@2"}, ["critic_inf"])
    found = words(schedule(where, PPO.calls, behind(where), {}))
    number = found.index("critic_inf")
    assert found[number - 1 : number + 2] == ["critic to dp1@3", "critic_inf", "critic_inf out"]
    assert found[-1] == "critic_train"


def test_weights_are_read_before_they_are_offloaded() -> None:
    where = placement({"actor_gen": "dp1@0", "actor_train": "dp1@1"}, ["actor_train"])
    where = placement({**layouts_of(where), "critic_train": "dp1@2", "critic_inf": "dp1@2"}, ["actor_train"])
    assert steady(where)[-4:] == ["actor_train", "actor to dp1", "actor_train out", "critic_train"]


def test_a_copy_comes_back_beside_the_call_before_on_one_of_its_ranks() -> None:
    layouts = {"rew_inf": "dp2@0-1", "ref_inf": "dp2@2-3", "critic_inf": "dp2@0-1", "critic_train": "dp2@0-1"}
    names = ["ref_inf", "critic_train", "critic_inf"]
    assert steady(placement(layouts, ["ref_inf", "critic_inf", "critic_train"], prefetched=names)) == [
        "ref_inf in", "actor_gen", "critic_inf in", "rew_inf", "ref_inf", "ref_inf out", "critic_inf",
        "critic_inf out", "critic_train in", "actor_train", "critic_train", "critic_train out",
    ]  # fmt: skip


def test_a_copy_comes_back_when_another_call_has_used_it() -> None:
    layouts = dict.fromkeys(("rew_inf", "ref_inf", "critic_inf"), "dp2@2-3")
    actor = ["actor_gen", "actor_train"]
    where = placement({**dict.fromkeys(actor, "dp2@0-1"), **layouts}, actor, prefetched=actor)
    assert steady(where)[:4] == ["actor_gen", "actor_gen out", "actor_train in", "rew_inf"]


def test_a_copy_that_gets_its_weights_is_not_brought_back_before() -> None:
    where = placement({"actor_gen": "dp1@0", "actor_train": "dp1@1"}, ["actor_gen"], prefetched=["actor_gen"])
    found = words(schedule(where, PPO.calls, behind(where), {}))
    assert found[:3] == ["actor to dp1", "actor_gen", "actor_gen out"]


def layouts_of(where: Placement) -> dict[str, str]:
    return {name: layout.short for name, layout in where.layouts.items()}


def test_an_update_waits_for_calls_but_comes_before_those_that_need_it() -> None:
    layouts = {"ref_inf": "dp1@3", "actor_train": "dp1@0", "critic_train": "dp1@3", "critic_inf": "dp1@3"}
    updates = {"actor_train": [FOLLOW], "critic_train": []}
    assert steady(placement(layouts), updates)[-4:] == [
        "actor_train", "critic_train", "actor_train moves ref", "actor to dp4"
    ]  # fmt: skip
    again = ModelFunctionCall("ref_again", "ref", "inference", TOKENS, ("other",))
    graph = Graph.from_calls((*PPO.calls[:5], again, PPO.calls[5]))
    where = placement({**layouts, "ref_again": "dp1@2"}, graph=graph)
    assert words(schedule(where, graph.calls, (), updates))[-6:] == [
        "actor_train", "actor_train moves ref", "ref to dp1@2", "ref_again", "critic_train", "actor to dp4"
    ]  # fmt: skip


def test_an_evaluation_moves_only_what_is_behind() -> None:
    where = placement({"actor_gen": "dp1@0", "actor_train": "dp1@1"})
    assert words(schedule(where, PPO.calls[:2])) == ["actor_gen", "rew_inf"]
    assert words(schedule(where, PPO.calls[:2], behind(where))) == ["actor to dp1", "actor_gen", "rew_inf"]
    assert words(schedule(where, PPO.calls)) == [call.name for call in PPO.calls]


def random_placement(draw: random.Random) -> Placement:
    def layout() -> str:
        size = draw.choice([1, 1, 2, 2, 3, 4])
        ranks = sorted(draw.sample(range(4), size))
        return f"{draw.choice(['dp', 'tp', 'pp'])}{size}@{','.join(map(str, ranks))}"

    names = [call.name for call in PPO.calls]
    offloaded, prefetched = ([name for name in names if draw.random() < 0.3] for _ in range(2))
    return placement({name: layout() for name in names}, offloaded, prefetched=prefetched)


def ends(actions: Sequence[Action], where: Placement) -> bool:
    """Whether ranks that go through the actions, each at its own pace, all reach the end.

    A rank stays at a meeting until all of its ranks are there, and at a call until what it reads was sent.
    """
    left = {rank: deque(action for action in actions if rank in action.ranks) for rank in range(4)}
    sent: set[tuple[str, int]] = set()
    transfers = where.transfers(PPO.calls)
    while any(left.values()):
        moved = False
        for rank, waiting in left.items():
            if not waiting:
                continue
            action = waiting[0]
            if isinstance(action, Move | Update):
                if not all(left[other] and left[other][0] is action for other in action.ranks):
                    continue
                for other in action.ranks:
                    left[other].popleft()
            elif isinstance(action, Compute):
                name = action.call.name
                if any(
                    (one.producer, one.source) not in sent
                    for one in transfers
                    if (one.consumer, one.target) == (name, rank)
                ):
                    continue
                if not all(left[other] and left[other][0] is action for other in action.ranks):
                    continue  # its ranks communicate
                for other in action.ranks:
                    left[other].popleft()
                    sent.add((name, other))
            else:
                waiting.popleft()
            moved = True
            break
        if not moved:
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_no_placement_ends_in_a_deadlock_and_no_call_finds_old_weights(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(100):
        where = random_placement(draw)
        updates = {"actor_train": [FOLLOW] if draw.random() < 0.5 else [], "critic_train": []}
        stale = set(behind(where))
        for _ in range(2):
            actions = schedule(where, PPO.calls, stale, updates)
            assert ends(actions, where)
            check_weights(actions, where, stale)
        assert [action.call for action in actions if isinstance(action, Compute)] == list(PPO.calls)


def check_weights(actions: Sequence[Action], where: Placement, stale: set[Copy]) -> None:
    """Go through the actions, and check that no call uses a copy that is behind; `stale` is then what is at the end."""
    n_moves: dict[Copy, int] = defaultdict(int)
    for action in actions:
        if isinstance(action, Move):
            copy = (action.role, action.layout)
            assert copy in stale
            stale.remove(copy)
            n_moves[copy] += 1
        elif isinstance(action, Compute):
            assert (action.call.role, where.layouts[action.call.name]) not in stale
            if action.call.kind == "train_step":
                stale |= {(action.call.role, layout) for layout in where.copies(action.call.role)[1:]}
        elif isinstance(action, Update):
            stale |= {(action.update.target, layout) for layout in where.copies(action.update.target)[1:]}
        elif isinstance(action, Offload):
            assert action.call.name in where.offloaded
    offloaded = {(call.role, where.layouts[call.name]) for call in PPO.calls if call.name in where.offloaded}
    assert stale <= offloaded
    assert max(n_moves.values(), default=0) <= 2
