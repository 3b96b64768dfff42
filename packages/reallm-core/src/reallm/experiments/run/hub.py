"""Uploads the checkpoint of a run to the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from reallm.errors import ConfigError, ReallmError, one_line
from reallm.experiments.reports.number_format import number
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, step_of
from reallm.experiments.runs.info import RunInfo, read_run
from reallm.experiments.runs.settings import flatten, read_settings, trained_role
from reallm.hf.checkpoint_folder import files_of

CARD = "README.md"
"""Name of the file with the model card."""
NOT_IN_CARD = (
    "output_dir", "name", "resume", "push_to_hub", "loggers", "callbacks", "parallel", "allocation", "plan",
)  # fmt: skip
"""Settings that say nothing about the model."""


class HubError(ReallmError):
    """The hub cannot be reached, or refuses an upload."""


def check_hub(repo: str, key: str = "") -> None:
    """Check, before training, that the user is logged in and may write to a repository.

    Args:
        repo: name of the repository, `owner/name`.
        key: key that names it, for errors.

    Raises:
        ConfigError: the name is wrong, or the user may not write there; says what to do.
        HubError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    written = f"{key}={repo}" if key else repo
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) is None:
        raise ConfigError(f"{written}: must name a repository as owner/name, such as my-org/my-model")
    try:
        user: Mapping[str, Any] = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            f"{written}: you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception as error:  # the client passes on errors of the libraries below it
        raise HubError(f"{written}: cannot log in to the hub: {one_line(error)[:300]}") from error
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ConfigError(f"{written}: your token is read-only; log in with one that may write")
    owner = repo.partition("/")[0]
    owners = [user.get("name"), *(org.get("name") for org in user.get("orgs", ()))]
    if owner not in owners:
        raise ConfigError(
            f"{written}: '{user.get('name')}' may not write to '{owner}'; "
            f"you may write to {', '.join(map(str, owners))}"
        )


def push_run(run_dir: Path, repo: str) -> str:
    """Upload the best checkpoint of a run, or else the newest, in one commit; returns the repository's address.

    A repository that does not exist is made, as a private one. The training state is not uploaded.

    Raises:
        HubError: the run has no checkpoint, or the upload failed; ends with the command that tries again.
        CheckpointError: a file of the checkpoint is a link that leads out of it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    run = read_run(run_dir)
    checkpoint = (run.best and run.best.checkpoint) or run.checkpoint
    if checkpoint is None:
        raise HubError(f"{run_dir} has no checkpoint to upload")
    files = files_of(checkpoint, ("**/*",))
    card = model_card(run, read_settings(RunFolder(run_dir).config), repo)
    operations = [
        CommitOperationAdd(str(path.relative_to(checkpoint)), str(path))
        for path in files
        if TRAINING_STATE not in path.relative_to(checkpoint).parts and path.name != CARD
    ]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    try:
        api = HfApi()
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"{run.name}, step {step_of(checkpoint.resolve().name)}")
    except Exception as error:  # see `check_hub`
        command = shlex.join(["reallm", "push", str(run_dir), repo])
        raise HubError(f"push to {repo} failed: {one_line(error)[:300]}; to push later: {command}") from error
    return str(address)


def model_card(run: RunInfo, settings: Mapping[str, Any], repo: str) -> str:
    """The model card of a run: base model, data by file name, metrics, settings. No path of this machine is in it."""
    flat = {key: _public(key, value) for key, value in flatten(settings).items()}
    trained = trained_role(settings)
    is_adapter = any(flat.get(f"{trained}.lora.{key}") is not None for key in ("rank", "path"))
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["reallm", *filter(None, [run.algorithm])],
    }
    base = str(settings.get(trained, {}).get("path", ""))
    if base.count("/") == 1 and not os.path.exists(base):  # noqa: PTH110 - a hub id is no path
        head["base_model"] = base
    shown = {key: value for key, value in flat.items() if key.split(".")[0] not in NOT_IN_CARD and value is not None}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {repo.rpartition('/')[2]}",
        "",
        f"Trained with [reallm](https://pypi.org/project/reallm-core/) {version('reallm-core')}"
        + (f" (`reallm {run.algorithm}`)." if run.algorithm else "."),
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| `{name}` | {number(value)} |" for name, value in run.metrics.items()),
        f"| steps | {run.steps:,} |",
        "",
        "## Settings",
        "",
        "```yaml",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in shown.items()),
        "```",
        "",
    ]
    return "\n".join(lines)


def _public(key: str, value: Any) -> Any:
    """A setting without the folders of this machine."""
    is_path = isinstance(value, str) and (key.endswith("path") or value.startswith(("/", "~")))
    return Path(value).name if is_path else value
