"""The commands of the command line that have commands of their own: `lpo data ...` and `lpo models ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpo.config import load_params
from lpo.errors import LpoError
from lpo.outputs import check_file, check_folder

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.", metavar="FILE")]
PARAMS = Path("params.yaml")
Force = Annotated[bool, typer.Option("--force", help="Replace a file that this command did not write.")]

data = typer.Typer(help="Import pairs and scores of your own.", no_args_is_help=True)
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
    """Promote NAME again, or the model that was in use before the present one."""
    from lpo.registry.ledger import rollback as run

    run(name)


@data.command("import")
def data_import(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE...", help="Pairs: .csv, .tsv, .jsonl or .parquet; text also as .gz.", exists=True
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write the pairs to; then set dataset.path to it.", metavar="FOLDER")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="The folder that image paths start from. Default: the table's folder.", metavar="FOLDER"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column of ours = the table's name for it. May be repeated.", metavar="caption=prompt"),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Import tables of pairs: images as bytes or paths, captions, labels."""
    check_folder(out, "lpo data import")
    loaded = load_params(params)
    from lpo.commands.imports import import_pairs

    wrong = [item for item in column or [] if not all(item.partition("="))]
    if wrong:
        raise LpoError(f"no column is named in {wrong[0]!r}", "--column", "write --column OURS=THEIRS: caption=prompt")
    columns = {item.partition("=")[0]: item.partition("=")[2] for item in column or []}
    counts = import_pairs(loaded, tables, images, out, columns)
    for name, found in counts.items():
        typer.echo(f"{name:<6} " + (", ".join(f"{key}: {count}" for key, count in found.items()) or "none"))
    if counts["left"]:
        typer.echo(f"rows that were left out: {out}/left_out/left_out.parquet")
    typer.echo(f"now set dataset.source to folder and dataset.path to {out} in {params}")


@data.command("scores")
def data_scores(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="image_uid, aesthetic, clip, vqa.", exists=True)],
    out: Annotated[Path, typer.Option(help="The .parquet file to write; then set score.table to it.", metavar="FILE")],
    force: Force = False,
) -> None:
    """Import scores that were computed elsewhere, keyed by image uid."""
    check_file(out, "lpo data scores", (".parquet",), force)
    from lpo.commands.imports import import_scores

    typer.echo(f"{import_scores(table, out, force)} rows; now set score.table to {out} in params.yaml")
