"""YAML that others wrote, parsed within bounds: with aliases a file of a kilobyte may hold a billion values.

Imports no torch and no OmegaConf.
"""

from __future__ import annotations

from typing import Any

import yaml

from reallm.foreign_files import MAX_DEPTH

MAX_VALUES = 100_000
"""Values of a document, with its aliases written out."""


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a YAML document, which say where in the text they are; None if it is empty.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it holds more than `MAX_VALUES` values.
        RecursionError: it holds itself, or is nested more than `foreign_files.MAX_DEPTH` deep.
    """
    root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _check_size(root)
    return root


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, as `yaml.safe_load` gives it; raises what `compose_yaml` does."""
    root = compose_yaml(text)
    return None if root is None else yaml.SafeLoader("").construct_document(root)


def _check_size(root: yaml.Node) -> None:
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise RecursionError
        if id(node) not in sizes:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
            sizes[id(node)] = 1 + sum(size(one, depth + 1) for one in inner)
        return sizes[id(node)]

    if size(root, 0) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
