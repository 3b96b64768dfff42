"""The rewards keep all promises that the conformance kit knows."""

from __future__ import annotations

import pytest

from reallm_devkit import check_reward


@pytest.mark.parametrize("name", ["exact_match", "number_match", "math", "format", "length"])
def test_it_passes(name):
    report = check_reward(name)
    assert report.passed, str(report)
