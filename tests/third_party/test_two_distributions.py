"""Two distributions that get into each other's way."""

from __future__ import annotations

import json

DATASETS = "from reallm.plugins import registry; print(registry.names('dataset'))"


def test_a_name_that_two_offer_is_an_error_that_names_both_when_it_is_asked_for(environment):
    here = environment("reallm-same-name-a", "reallm-same-name-b")
    message = here.error("dataset", "shared")
    assert "reallm-same-name-a 1.0" in message
    assert "reallm-same-name-b 1.0" in message
    assert "REALLM_DISABLE_PLUGINS='reallm-same-name-b[dataset.shared]'" in message


def test_the_other_names_of_both_still_work(environment):
    names = environment("reallm-same-name-a", "reallm-same-name-b").evaluate(DATASETS)
    assert "'only-a', 'only-b'" in names
    assert "shared" not in names


def test_the_remedy_that_the_error_names_is_one(environment):
    here = environment("reallm-same-name-a", "reallm-same-name-b")
    names = here.evaluate(DATASETS, REALLM_DISABLE_PLUGINS="reallm-same-name-b[dataset.shared]")
    assert "'only-a', 'only-b'" in names
    assert "'shared'" in names
    owner = "from reallm.plugins.registry import registry; print(registry().offer('dataset', 'shared').plugin)"
    assert "reallm-same-name-a" in here.evaluate(owner, REALLM_DISABLE_PLUGINS="reallm-same-name-b[dataset.shared]")


def test_the_listing_shows_the_conflict(environment):
    here = environment("reallm-same-name-a", "reallm-same-name-b")
    found = json.loads(here.reallm("plugins", "--json").stdout)
    both = ["reallm-same-name-a", "reallm-same-name-b"]
    assert found["conflicts"] == [{"kind": "dataset", "name": "shared", "distributions": both}]
    done = here.reallm("plugins")
    assert done.returncode == 0  # nothing has failed
    assert "conflict the dataset 'shared' is offered by reallm-same-name-a 1.0" in done.stdout


def test_two_distributions_may_use_the_same_entry_point_name(environment):
    here = environment("reallm-same-entry-a", "reallm-same-entry-b")
    names = here.evaluate(DATASETS)
    assert "'same-entry-a', 'same-entry-b'" in names
    rows = json.loads(here.reallm("plugins", "--json").stdout)["plugins"]
    assert [row["entry_points"] for row in rows if row["distribution"].startswith("reallm-same")] == [["plugin"]] * 2


def test_of_two_with_the_same_entry_point_name_either_can_be_blocked(environment):
    here = environment("reallm-same-entry-a", "reallm-same-entry-b")
    names = here.evaluate(DATASETS, REALLM_DISABLE_PLUGINS="reallm-same-entry-a[plugin]")
    assert "same-entry-a" not in names
    assert "same-entry-b" in names
