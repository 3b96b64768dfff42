"""The core and one package of families: its families pass the conformance kit, and the rest says what to install."""

from __future__ import annotations

import json
from importlib.metadata import distributions, requires, version

import pytest
from packaging.requirements import Requirement

import reallm as package
from reallm.errors import ReallmError
from reallm.plugins import registry
from reallm.plugins.known import known_distributions
from reallm_devkit import check_family

INSTALLED = {one.name for one in distributions()}
FAMILIES = {family.names[0]: family for family in registry.offers("family").values()}
ELSEWHERE = [
    (name, item.distribution)
    for item in known_distributions()
    if item.distribution not in INSTALLED
    for name in item.offers.get("family", ())
]
"""The families that other packages of ours have, and these packages."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_conformance_kit_passes(family):
    report = check_family(family)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("distribution", sorted(name for name in INSTALLED if name.startswith("reallm-")))
def test_what_it_depends_on_is_installed(distribution):
    for needed in map(Requirement, requires(distribution) or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            assert version(needed.name) in needed.specifier, needed


def test_exactly_its_families_are_offered():
    (promised,) = [
        item.offers["family"] for item in known_distributions() if item.distribution in INSTALLED and item.offers
    ]
    assert sorted(registry.names("family")) == sorted(promised)
    assert sorted(name for family in FAMILIES.values() for name in family.names) == sorted(promised)
    assert registry.names("dataset") == []


def test_its_methods_are_those_of_its_families():
    methods = {name for name in dir(package.ReaLModel) if name.startswith(("from_", "config_from_"))}
    assert {f"from_{name}" for name in registry.names("family")} <= methods
    assert not {f"from_{name}" for name, _ in ELSEWHERE} & methods


@pytest.mark.parametrize(("name", "distribution"), ELSEWHERE)
def test_a_checkpoint_of_another_family_says_what_to_install(name, distribution, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    with pytest.raises(ReallmError, match=f"pip install {distribution}"):
        package.ReaLModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "distribution"), ELSEWHERE)
def test_asking_for_another_family_says_what_to_install(name, distribution):
    with pytest.raises(AttributeError, match=f"pip install {distribution}"):
        getattr(package.ReaLModel, f"from_{name}")


def test_sft_without_a_dataset_is_one_clear_line(reallm):
    done = reallm("sft", "model.path=.", "dataset.train_path=rows.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install reallm-datasets" in done.stderr
