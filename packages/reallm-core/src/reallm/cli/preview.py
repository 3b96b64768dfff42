"""`reallm preview`: the first rows of the data as the tokens that training gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.cli.trust import TrustCode, with_trust

DEFAULT_ALGORITHM = "sft"


def preview(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="Keys of `reallm sft`, of which these are enough: model.path (a "
            "folder with a tokenizer) and dataset.train_path.",
        ),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="Read keys from a YAML file; repeatable.")
    ] = None,
    trust_code: TrustCode = False,
    n: Annotated[int, typer.Option("-n", "--rows", metavar="N", min=1, help="Number of rows to show.")] = 3,
    split: Annotated[str, typer.Option(metavar="NAME", help="train or valid.")] = "train",
    algorithm: Annotated[str, typer.Option(metavar="NAME", help="Algorithm whose keys these are.")] = DEFAULT_ALGORITHM,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page for a browser.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show the first rows of the data as training gets them, token by token.

    What is trained is in colour; rows that are cut or dropped say so.

    \b
      reallm preview model.path=PATH dataset.train_path=train.jsonl
      reallm preview --config run.yaml -n 20 --html preview.html
      reallm preview resume=first-try
    """  # fmt: skip
    from reallm.errors import ConfigError, did_you_mean

    if split not in ("train", "valid"):
        raise ConfigError(f"--split {split}: must be train or valid{did_you_mean(split, ('train', 'valid'))}")
    if html is not None and html.suffix not in (".html", ".htm"):
        raise ConfigError(f"--html {html}: the name must end in .html")
    show_preview(algorithm, config or [], with_trust(arguments, trust_code), n, split=split, html=html, as_json=as_json)


def show_preview(
    name: str,
    files: list[Path],
    arguments: list[str],
    n: int,
    *,
    split: str = "train",
    html: Path | None = None,
    as_json: bool = False,
) -> None:
    """Preview the data of a configuration of the algorithm `name`, on the terminal, as JSON or as a page."""
    from reallm.cli.algorithm import load_configuration
    from reallm.config.schema import dataset_fields
    from reallm.experiments.preflight.checks import check_dataset
    from reallm.plugins import registry
    from reallm.printable import json_text

    configuration = load_configuration(name, files, arguments).build()
    for field in dataset_fields(type(configuration)):
        check_dataset(field, getattr(configuration, field))

    from reallm.cli.preview_view import print_preview, to_json
    from reallm.experiments.run.preview import preview_data

    found = preview_data(configuration, registry.get("algorithm", name), n, split)
    if as_json:
        typer.echo(json_text(to_json(found)))
    elif html is None:
        print_preview(found)
    if html is not None:
        from reallm.experiments.reports.preview_page import write_preview_page

        write_preview_page(found, html)
        if not as_json:
            typer.echo(f"written: {html}")
