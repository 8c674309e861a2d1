"""The commands of the command line that have commands of their own: `lpo data ...` and `lpo models ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpo.config import load_params

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.", metavar="FILE")]
PARAMS = Path("params.yaml")

data = typer.Typer(help="Bring in pairs and scores of your own.", no_args_is_help=True)
models = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List promotions and refusals; roll back."""
    if context.invoked_subcommand is None:
        from lpo.registry.ledger import show

        show()


@models.command()
def rollback(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A name that `lpo models` lists, or base.", show_default=False)
    ] = None,
) -> None:
    """Take NAME into use, or what was in use before the present model."""
    from lpo.registry.ledger import rollback as run

    run(name)


@data.command("import")
def data_import(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Pairs: .parquet or .csv.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where they go; dataset.path names it.", metavar="FOLDER")],
    images: Annotated[
        Path | None, typer.Option(help="Image paths are relative to it. Default: the table's folder.", metavar="FOLDER")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Our column = the table's, once for each.", metavar="caption=prompt")
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Turn tables of pairs into a source: images as bytes or paths, captions, labels."""
    loaded = load_params(params)
    from lpo.commands.imports import import_pairs

    columns = {item.partition("=")[0]: item.partition("=")[2] for item in column or []}
    counts = import_pairs(loaded, tables, images, out, columns)
    for name, found in counts.items():
        typer.echo(f"{name:<6} " + (", ".join(f"{key}: {count}" for key, count in found.items()) or "none"))
    typer.echo(f"now set dataset.source to folder and dataset.path to {out} in {params}")


@data.command("scores")
def data_scores(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="image_uid, aesthetic, clip, vqa.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where they go; score.table names it.", metavar="FILE")],
) -> None:
    """Bring in scores that were computed elsewhere, keyed by image uid."""
    from lpo.commands.imports import import_scores

    typer.echo(f"{import_scores(table, out)} rows; now set score.table to {out} in params.yaml")
