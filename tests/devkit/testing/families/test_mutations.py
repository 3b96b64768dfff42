"""Each check of the kit for families finds what it is for: families with one mistake, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from reallm_devkit import FAMILY_CHECKS, FamilyKit
from tests.devkit.testing.families import broken_families
from tests.devkit.testing.families.broken_families import MISTAKES, Mistake

HARD_TO_BREAK = {
    "light-import": "it is of installed plugins, and the same for all kinds of them",
    "tied": "transformers ties by the same key that the table reads, so that the names of tensors differ first",
    "save": "it follows from the tables, which checks before it have taken there and back",
    "checkpoint": "it is tested with checkpoints, in test_family_kit.py",
}
"""Checks that no mistake here breaks alone."""


class OneCase(FamilyKit):
    """The first configuration only: the mistakes are in all of them."""

    def cases(self) -> Sequence[str]:
        return super().cases()[:1]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_found_by_one_check_and_no_other(mistake: Mistake) -> None:
    expected = [name for name in (mistake.check, mistake.also) if name]
    # it changes configurations, which takes seconds, and is of no concern to what it does not find
    skip = {} if "config-fields" in expected else {"config-fields": "this mistake is another's"}
    family = getattr(broken_families, mistake.family)
    report = OneCase.of(family=family, configs=mistake.configs, skip=skip).run()
    assert [result.check for result in report.failed] == expected, str(report)
    said = str(report.failed[0])
    for text in mistake.says:
        assert text in said, said
    failure = report.failed[0].failure
    assert failure is not None
    assert "broken_families" in failure.look_at


def test_there_is_a_mistake_for_each_check() -> None:
    found = {mistake.check for mistake in MISTAKES}
    assert found | HARD_TO_BREAK.keys() == {check.name for check in FAMILY_CHECKS}
