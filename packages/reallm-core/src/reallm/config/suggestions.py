"""Error messages for wrong keys and arguments: the input, the nearest right key, and the allowed values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from reallm.config.args import ModelArgs
from reallm.config.foreign_keys import explanation, our_key
from reallm.config.schema import Group, Key
from reallm.errors import close_matches, nearest

MAX_LISTED = 5
"""The most keys of a group that an error lists if none is similar."""
OPTIONS = ("config", "print-config", "preview", "dry-run", "help")
"""Names of the options with dashes; everything else is `key=value`."""


def unknown_key(name: str, groups: Sequence[Group]) -> str:
    """The message for a key that does not exist.

    `unknown key 'dataset.train_pth'; did you mean 'dataset.train_path'?`, with up to three keys;
    `unknown key 'packing': sequences are always packed ...` for what other tools have and this one does not.
    """
    by_name = {group.name: group for group in groups}
    if name in by_name:
        return f"'{name}' is a group of keys, not a value; write {_main_key(by_name[name])}=VALUE"
    near = suggestions(name, groups)
    if near:
        return f"unknown key '{name}'; did you mean {_either(near)}?"
    if sentence := explanation(name):
        return f"unknown key '{name}': {sentence}"
    above = name.rpartition(".")[0]
    while above not in by_name:
        above = above.rpartition(".")[0]
    group = by_name[above]
    if above and len(group.keys) <= MAX_LISTED:
        return f"unknown key '{name}'; keys of {group.dataset or above}: {', '.join(key.leaf for key in group.keys)}"
    return f"unknown key '{name}'; --help lists all keys"


def suggestions(name: str, groups: Sequence[Group]) -> list[str]:
    """The keys that were probably meant, at most three; none if no key is similar.

    `dataset.path` -> `dataset.train_path`, `dataset.valid_path`; `lr` and `model.lr` -> `optimizer.lr`;
    `learning_rate`, the name elsewhere -> `optimizer.lr`.
    """
    keys = [key for group in groups for key in group.keys]
    name = name.lower().replace("-", "_").lstrip("+~")
    parent, _, leaf = name.rpartition(".")
    siblings = [key for group in groups if parent and group.name == parent for key in group.keys]
    renamed = our_key(name)
    for found in (
        [key for key in keys if key.name.replace(".", "_") == name.replace(".", "_")],
        [key for key in keys if key.name == renamed] or _of_roles(renamed, groups),
        [key for key in keys if "." in (renamed or "") and key.name.endswith(f".{renamed}")],
        [] if explanation(name) else _similar(leaf, siblings),
        _outermost([key for key in keys if key.leaf == leaf]),
        [] if explanation(name) else _similar(leaf, keys),
    ):
        if found:
            return [key.name for key in found[:3]]
    return []


def _similar(leaf: str, keys: Sequence[Key]) -> list[Key]:
    """Keys with a similar last part, the most similar ones first; or else those with a similar word in it."""
    near = close_matches(leaf, [key.leaf for key in keys])
    similar = [key for each in near for key in keys if key.leaf == each]
    return similar or [key for key in keys if len(leaf) > 2 and close_matches(leaf, key.leaf.split("_"))]


def _of_roles(renamed: str | None, groups: Sequence[Group]) -> list[Key]:
    """The keys of all roles for a key of `model`: `actor.path` for `model.path`, of an algorithm without that role."""
    if renamed is None or not renamed.startswith("model."):
        return []
    roles = [group.name for group in groups if group.cls is not None and issubclass(group.cls, ModelArgs)]
    wanted = {f"{role}.{renamed.removeprefix('model.')}" for role in roles}
    return [key for group in groups for key in group.keys if key.name in wanted]


def _outermost(keys: Sequence[Key]) -> list[Key]:
    """Those of the keys whose names have the fewest parts: `model.path` before `model.lora.path`."""
    fewest = min((key.name.count(".") for key in keys), default=0)
    return [key for key in keys if key.name.count(".") == fewest]


def _either(names: Sequence[str]) -> str:
    """`'a'`, `'a' or 'b'`, `'a', 'b' or 'c'`."""
    shown = [f"'{name}'" for name in names]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _main_key(group: Group) -> str:
    """The key that is probably meant by an assignment to a group."""
    names = [key for key in group.keys if key.leaf == "name" or key.required] or list(group.keys)
    return names[0].name if names else group.name


def _what_is_at(path_text: str) -> Literal["model", "file", ""]:
    """What is at a path that a user may mean; nothing if it is no path."""
    with suppress(OSError, ValueError):
        path = Path(path_text)
        if (path / "config.json").is_file() or (path / "checkpoints").is_dir():
            return "model"
        return "file" if path.exists() else ""
    return ""


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
    there = _what_is_at(argument)
    paths = [name for name in ("model.path", *(key.name for key in _of_roles("model.path", groups))) if name in names]
    key = next(iter(paths), "") if there == "model" else "dataset.train_path"
    if argument and key in names and there:
        return f"'{argument}' is not key=value; did you mean {key}={argument}?"
    if argument in names:
        return f"'{argument}' has no value; write {argument}=VALUE"
    near = suggestions(argument, groups)
    return f"'{argument}' is not key=value" + (
        f"; did you mean {near[0]}=VALUE?" if near else ", such as optimizer.lr=1e-5"
    )


def _option(argument: str, following: str, groups: Sequence[Group]) -> str:
    """The message for a key written as an option: `--lr 1e-4`, `--model.path=x`."""
    name = argument.lstrip("-").partition("=")[0]
    keys = [key for group in groups for key in group.keys]
    option = nearest(name, OPTIONS)
    if option == name:
        return f"'{argument}' is not an option of this command, but of those that train"
    if option and not any(name in (key.name, key.leaf) for key in keys):
        return f"unknown option '{argument}'; did you mean '--{option}'?"
    if problem := key_as_option(argument, following, groups):
        return problem
    options = ", ".join(f"--{item}" for item in OPTIONS)
    return f"unknown option '{argument}'; options are {options}, everything else is written key=value"


def key_as_option(argument: str, following: str, groups: Sequence[Group]) -> str | None:
    """The message for an option that means a key, or a setting of another tool; None if it means neither."""
    name, _, value = argument.lstrip("-").partition("=")
    group = next((group for group in groups if group.name == name), None)
    near = [_main_key(group)] if group is not None else suggestions(name, groups)
    if not near:
        sentence = explanation(name)
        return f"unknown option '{argument}': {sentence}" if sentence else None
    if not value and following and "=" not in following and not following.startswith("-"):
        value, argument = following, f"{argument} {following}"
    return f"'{argument}': keys are written without dashes and with '=': {near[0]}={value or 'VALUE'}"
