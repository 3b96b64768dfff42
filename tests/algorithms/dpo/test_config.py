"""Which settings of preference optimisation go together, and what is said of those that do not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.graph import graph
from reallm.algorithms.dpo.loss_types import LOSS_TYPES, SFT
from reallm.config.args import ReferenceArgs
from reallm.errors import ConfigError
from tests.helpers.preferences import ACTOR, Data

UNPAIRED = Data(name="unpaired_preference")
NEEDED: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 1e-3},
    "kto": {"dataset": UNPAIRED},
    "apo_zero_unpaired": {"dataset": UNPAIRED},
}
"""What loss types cannot be without."""


def config(**settings: Any) -> DPOConfig:
    return DPOConfig(**{"actor": ACTOR, "dataset": Data(), **settings})


def test_the_reference_is_the_checkpoint_that_the_policy_starts_from_unless_it_is_given() -> None:
    assert config().ref.path == ACTOR.path
    assert config(ref=ReferenceArgs(path="models/other")).ref.path == "models/other"
    assert config(ref=ReferenceArgs(dtype="bfloat16")).ref == ReferenceArgs(path=ACTOR.path, dtype="bfloat16")


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_every_loss_type_can_be_chosen(name: str) -> None:
    assert config(loss_type=name, **NEEDED.get(name, {})).loss_types == {name: 1.0}


def test_losses_are_added_with_weights() -> None:
    mixed = config(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.5])
    assert mixed.loss_types == {"sigmoid": 0.8, "bco_pair": 0.2}
    assert mixed.sft_weight == 1.5
    assert config(rpo_alpha=0.5).sft_weight == 0.5
    assert config(loss_type="orpo").sft_weight == 1


def test_the_graph_scores_only_what_the_loss_needs() -> None:
    def calls(**settings: Any) -> list[str]:
        return [call.name for call in graph(config(**settings))]

    assert calls() == ["ref_inf", "actor_train"]
    assert calls(loss_type="simpo") == ["actor_train"]
    assert calls(loss_type="orpo") == ["actor_train"]
    assert calls(loss_type=["simpo", "sigmoid"]) == ["ref_inf", "actor_train"]
    assert calls(loss_type="aot") == ["ref_inf", "actor_inf", "actor_train"]
    assert calls(loss_type="kto", dataset=UNPAIRED) == ["ref_inf", "actor_inf", "actor_train"]
    assert calls(loss_type="apo_zero_unpaired", dataset=UNPAIRED) == ["ref_inf", "actor_train"]


def test_a_reference_that_does_not_change_is_scored_once() -> None:
    assert graph(config())[0].precompute
    assert not graph(config(ref_logprobs="live"))[0].precompute
    following = graph(config(sync_ref_model=True, ref_model_sync_steps=4, ref_model_mixup_alpha=0.25))
    assert not following[0].precompute
    (update,) = following[-1].updates
    assert (update.target, update.every, update.eta) == ("ref", 4, 0.25)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "sigmiod"}, "loss_type=sigmiod is not one of .*; did you mean 'sigmoid'."),
        ({"loss_type": []}, "loss_type is empty; give one of sigmoid, .*"),
        ({"loss_type": ["ipo", "ipo"]}, "loss_type has ipo twice; give it once, with its weight in loss_weights"),
        ({"loss_type": "sft"}, "loss_type=sft alone is no preference optimisation; use `reallm sft`"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 numbers, but loss_type has 1; give one for each"),
        ({"beta": 0.0}, "beta=0.0 must be more than 0"),
        ({"beta": float("nan")}, "beta=nan must be more than 0"),
        ({"label_smoothing": 0.6}, "label_smoothing=0.6 must be from 0 to 0.5; .*"),
        (
            {"label_smoothing": 0.5, "loss_type": "robust"},
            "label_smoothing=0.5 must be below 0.5 for loss_type=robust, .*",
        ),
        ({"loss_type": "exo_pair"}, "label_smoothing=0 must be more than 0 for loss_type=exo_pair; 1e-3 is usual"),
        (
            {"loss_type": "ipo", "label_smoothing": 0.1},
            "label_smoothing=0.1 has no effect on loss_type=ipo; it is for sigmoid, sigmoid_norm, robust, .*",
        ),
        ({"simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect on loss_type=sigmoid; it is for simpo"),
        ({"desirable_weight": 2.0}, "desirable_weight=2.0 has no effect on loss_type=sigmoid; it is for kto, .*"),
        (
            {"loss_type": ["sigmoid", "nca_pair"], "f_divergence_type": "forward_kl"},
            "f_divergence_type=forward_kl does not go together with loss_type=nca_pair; it is for sigmoid, .*",
        ),
        ({"loss_type": "discopop", "discopop_tau": 2.0}, "discopop_tau=2.0 must be at most 1; .*"),
        ({"rpo_alpha": -1.0}, "rpo_alpha=-1.0 must be at least 0"),
        (
            {"loss_type": "kto"},
            "loss_type=kto is for single answers with a label: set dataset.name=unpaired_preference",
        ),
        (
            {"dataset": UNPAIRED},
            "dataset.name=unpaired_preference has single answers: set loss_type to kto or apo_zero_unpaired",
        ),
        (
            {"loss_type": ["kto", "sigmoid"], "dataset": UNPAIRED},
            r"loss_type=\[kto,sigmoid\]: a loss of single answers cannot be added to others",
        ),
        (
            {"loss_type": "kto", "dataset": UNPAIRED, "rpo_alpha": 1.0},
            "rpo_alpha=1.0 needs chosen answers, which loss_type=kto has not",
        ),
        (
            {"sync_ref_model": True, "ref_logprobs": "cache"},
            "ref_logprobs=cache does not go together with sync_ref_model=true, .*; set ref_logprobs=live",
        ),
        ({"sync_ref_model": True, "loss_type": "simpo"}, "sync_ref_model=true: loss_type=simpo has no reference"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps=0 must be at least 1"),
        ({"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha=0.0 must be more than 0 and at most 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        config(**settings)
    assert re.fullmatch(said, str(found.value)), str(found.value)


def test_the_names_are_those_of_trl() -> None:
    """DPOTrainer's and KTOTrainer's of TRL 1.16, with simpo of its CPOTrainer and its ORPOTrainer."""
    assert {*LOSS_TYPES, SFT} == {
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "kto", "apo_zero_unpaired", "simpo", "orpo",
    }  # fmt: skip
