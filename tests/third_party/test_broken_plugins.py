"""A broken plugin is listed with its reason, hurts no other, and whoever asks for it reads one line."""

from __future__ import annotations

import json

import pytest

BROKEN = {
    "reallm-import-error": ("import-error", ["RuntimeError: the plugin's own mistake", "reallm_import_error.py:3"]),
    "reallm-missing-dependency": (
        "missing-dependency",
        ["needs the module 'a_module_that_nobody_has'", "not installed", "pip install a_module_that_nobody_has"],
    ),
    "reallm-misspelt-hook": ("misspelt-hook", ["no hook 'reallm_dataset'", "did you mean 'reallm_datasets'?"]),
    "reallm-wrong-argument": ("wrong-argument", ["reallm_datasets(settings)", "hooks take no arguments"]),
    "reallm-raising-hook": ("raising-hook", ["reallm_datasets raised ValueError: no data today"]),
    "reallm-wrong-type": ("wrong-type", ["the value of 'wrong-type' is the class Dataset, not DatasetSpec"]),
    "reallm-other-api": ("other-api", ["made for hook API 2.0, but reallm-core has 1.5", "--upgrade reallm-core"]),
    "reallm-broken-promise": (
        "promised",
        [
            "'dataset.promised' promises the dataset 'promised'",
            "offers the dataset 'unpromised' without an entry point",
        ],
    ),
}
"""Distribution -> the dataset that it promises and what is said of it."""


def listed(done, distribution):
    (row,) = [row for row in json.loads(done.stdout)["plugins"] if row["distribution"] == distribution]
    return row


@pytest.mark.parametrize("distribution", BROKEN)
def test_it_is_listed_with_its_reason_and_the_others_are_well(environment, distribution):
    done = environment(distribution, "reallm-my-data").reallm("plugins", "--json")
    assert done.returncode == 1
    row = listed(done, distribution)
    assert row["state"] == "failed"
    for words in BROKEN[distribution][1]:
        assert words in " ".join(row["failures"])
    assert all("\n" not in failure for failure in row["failures"])
    assert listed(done, "reallm-my-data")["state"] == "ok"
    assert listed(done, "reallm-core")["state"] == "ok"


@pytest.mark.parametrize("distribution", BROKEN)
def test_asking_for_what_it_promises_is_one_line_with_the_culprit_and_the_reason(environment, distribution):
    name, reason = BROKEN[distribution]
    message = environment(distribution).error("dataset", name)
    assert len(message.splitlines()) == 1
    for words in [name, f"{distribution} 1.0", *reason]:
        assert words in message


def test_the_command_line_prints_that_line_without_a_traceback(environment):
    done = environment("reallm-import-error").reallm("plugins", "show", "import-error")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the dataset 'import-error' is in reallm-import-error 1.0")
    assert len(done.stderr.splitlines()) == 1


def test_the_table_says_what_failed_and_why(environment):
    done = environment("reallm-missing-dependency").reallm("plugins")
    assert done.returncode == 1
    assert "failed" in done.stdout
    assert "failed reallm-missing-dependency 1.0 (reallm_missing_dependency): needs the module" in done.stdout


def test_of_a_plugin_with_one_raising_hook_the_other_hooks_still_count(environment):
    here = environment("reallm-raising-hook")
    assert here.evaluate("from reallm.plugins import registry; print(registry.get('logger', 'still-good').logger)")
    assert "still-good" in here.evaluate("from reallm.plugins import registry; print(registry.names('logger'))")


def test_an_unknown_name_comes_with_what_is_installed_and_what_failed(environment):
    message = environment("reallm-my-data", "reallm-import-error").error("dataset", "my-datasett")
    assert "did you mean 'my-dataset'?" in message
    assert "failed: reallm-import-error 1.0" in message
    assert len(message.splitlines()) == 1


def test_a_blocked_plugin_is_not_imported_and_has_not_failed(environment):
    here = environment("reallm-import-error")
    done = here.reallm("plugins", "--json", REALLM_DISABLE_PLUGINS="reallm-import-error")
    assert done.returncode == 0
    assert listed(done, "reallm-import-error")["state"] == "blocked"
    message = here.error("dataset", "import-error", REALLM_DISABLE_PLUGINS="reallm-import-error")
    assert "REALLM_DISABLE_PLUGINS blocks" in message
