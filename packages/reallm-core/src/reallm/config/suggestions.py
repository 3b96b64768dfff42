"""Error messages for wrong keys and arguments: the input, the nearest right key, and the allowed values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reallm.config.schema import Group, Key
from reallm.errors import nearest

OPTIONS = ("config", "print-config", "preview", "dry-run", "help")
"""Names of the options with dashes; everything else is `key=value`."""


def unknown_key(name: str, groups: Sequence[Group]) -> str:
    """`unknown key 'dataset.train_pth'; did you mean 'dataset.train_path'? Keys of dataset: name, train_path, ...`."""
    by_name = {group.name: group for group in groups}
    if name in by_name:
        return f"'{name}' is a group of keys, not a value; write {_main_key(by_name[name])}=VALUE"
    above = name.rpartition(".")[0]
    while above not in by_name:
        above = above.rpartition(".")[0]
    group = by_name[above]
    leaves = [key.leaf for key in group.keys]
    near = suggestion(name, groups)
    hint = f"; did you mean '{near}'? Keys" if near else "; keys"
    if not above:
        return f"unknown key '{name}'{hint}: {', '.join([f'{name}.*' for name in by_name if name] + leaves)}"
    return f"unknown key '{name}'{hint} of {group.dataset or above}: {', '.join(leaves)}"


def suggestion(name: str, groups: Sequence[Group]) -> str | None:
    """The key that was probably meant, or None.

    `dataset.path` -> `dataset.train_path`, `lr` and `model.lr` -> `optimizer.lr`, `learning_rate` -> `optimizer.lr`
    (its help says "learning rate").
    """
    keys = [key for group in groups for key in group.keys]
    name = name.lower().replace("-", "_")
    parent, _, leaf = name.rpartition(".")
    siblings = [key for group in groups if parent and group.name == parent for key in group.keys]
    return (
        _first(key for key in keys if key.name.replace(".", "_") == name.replace(".", "_"))
        or _similar(leaf, siblings)
        or _first(key for key in keys if key.leaf == leaf)
        or _similar(leaf, keys)
    )


def _similar(leaf: str, keys: Sequence[Key]) -> str | None:
    near = nearest(leaf, [key.leaf for key in keys])
    words = leaf.split("_")
    return (
        _first(key for key in keys if key.leaf == near)
        or _first(key for key in keys if len(leaf) > 2 and leaf in key.leaf)
        or _first(key for key in keys if len(words) > 1 and " ".join(words) in key.help.lower().replace("-", " "))
    )


def _first(keys: Iterator[Key]) -> str | None:
    return next((key.name for key in keys), None)


def _main_key(group: Group) -> str:
    """The key that is probably meant by an assignment to a group."""
    names = [key for key in group.keys if key.leaf == "name" or key.required] or list(group.keys)
    return names[0].name if names else group.name


def not_an_assignment(arguments: Sequence[str], index: int, groups: Sequence[Group]) -> str:
    """The message for `arguments[index]`, which is not `key=value`."""
    argument = arguments[index]
    following = arguments[index + 1] if index + 1 < len(arguments) else ""
    if argument.startswith("="):
        return f"'{argument}' has no key; write key=value without spaces"
    has_spaces = " " in argument.partition("=")[0] or following.startswith("=")
    if has_spaces:  # `lr =1`, `lr = 1`, or the same in quotes
        n_words = 3 if following == "=" else 2 if following.startswith("=") else 1
        written = " ".join(arguments[index : index + n_words])
        return f"'{written}': write {written.replace(' ', '')} without spaces"
    if argument.startswith("-"):
        return _option(argument, following, groups)
    if Path(argument).suffix in (".yaml", ".yml"):
        return f"'{argument}' is not key=value; to read a YAML file write --config {argument}"
    names = [key.name for group in groups for key in group.keys]
    if argument in names:
        return f"'{argument}' has no value; write {argument}=VALUE"
    near = suggestion(argument, groups)
    return f"'{argument}' is not key=value" + (
        f"; did you mean {near}=VALUE?" if near else ", such as optimizer.lr=1e-5"
    )


def _option(argument: str, following: str, groups: Sequence[Group]) -> str:
    """The message for a key written as an option: `--lr 1e-4`, `--model.path=x`."""
    name, _, value = argument.lstrip("-").partition("=")
    keys = [key for group in groups for key in group.keys]
    option = nearest(name, OPTIONS)
    if option and not any(name in (key.name, key.leaf) for key in keys):
        return f"unknown option '{argument}'; did you mean '--{option}'?"
    key = suggestion(name, groups)
    if key is None:
        options = ", ".join(f"--{item}" for item in OPTIONS)
        return f"unknown option '{argument}'; options are {options}, everything else is written key=value"
    if not value and following and "=" not in following and not following.startswith("-"):
        value, argument = following, f"{argument} {following}"
    return f"'{argument}': keys are written without dashes and with '=': {key}={value or 'VALUE'}"
