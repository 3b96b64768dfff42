"""`reallm.testing`, the old name of `reallm_devkit`, works and is deprecated."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reallm.testing
import reallm_devkit
from reallm.deprecation import HookDeprecationWarning


@pytest.mark.parametrize("name", reallm_devkit.__all__)
def test_every_public_name_is_that_of_the_devkit_with_a_note(name):
    with pytest.warns(HookDeprecationWarning) as caught:
        found = getattr(reallm.testing, name)
    line = sys._getframe().f_lineno - 1
    assert found is getattr(reallm_devkit, name)
    (warning,) = caught
    assert warning.message.message == (
        "the module 'reallm.testing' is deprecated since hook API 1.1 and will be removed in 2.0; "
        "use 'reallm_devkit' of reallm-devkit"
    )
    assert (warning.filename, warning.lineno) == (__file__, line)


def test_importing_a_name_from_it_works():
    with pytest.warns(HookDeprecationWarning, match="use 'reallm_devkit'"):
        from reallm.testing import DatasetKit
    assert DatasetKit is reallm_devkit.DatasetKit


@pytest.mark.parametrize("name", ["DatasetKitt", "annotations_", "testing", "__path__"])
def test_what_is_no_public_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'reallm.testing' has no attribute '{name}'"):
        getattr(reallm.testing, name)


SUITE = """
from reallm.testing import LoggerKit


class TestJsonl(LoggerKit):
    logger = "jsonl"
"""


def test_a_suite_that_imports_it_still_passes_and_is_told_the_new_name(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "use 'reallm_devkit' of reallm-devkit" in done.stdout
