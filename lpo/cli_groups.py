"""The commands of the command line that have commands of their own: `lpo data`, `lpo models` and `lpo serve`."""

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
serve = typer.Typer(help="Web services.", no_args_is_help=True)
votes = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List promotions, refusals, and where each model went; roll back; publish."""
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


@models.command()
def publish(params: ParamsFile = PARAMS) -> None:
    """Send the model in use to the places of the section publish that do not have it. Exits with 1 if one fails."""
    loaded = load_params(params)
    from lpo.commands.publish import run

    run(loaded)


@serve.callback()
def services() -> None:
    """Answer requests over HTTP."""


@serve.command("reward")
def serve_reward(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A latent reward model.")] = Path("data/reward"),
    base: Annotated[
        str | None,
        typer.Option(help="The model whose VAE it reads. Default: the one that its card names.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    host: Annotated[
        str, typer.Option(help="The address to listen on. Off loopback, requests need a token: see LPO_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows scored together, and rows of a request.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a request waits for others.")] = 5.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Rows that may wait; more are refused with 503.")] = 256,
    max_megabytes: Annotated[int, typer.Option(min=1, help="The largest request.")] = 64,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings", help="Take prompt embeddings, as verl-omni sends them. Right only if the reward was "
            "trained with the base's own text encoders (reward.trainable: denoiser, adapter or frozen)."
        ),
    ] = False,
) -> None:
    """Score latents or images over HTTP (docs/serving.md). The environment variable LPO_TOKEN sets the token."""
    from lpo.commands.serve import reward
    from lpo.web.reward import Limits

    limits = Limits(max_batch, max_wait_ms, max(max_queue, max_batch), max_megabytes * 2**20)
    reward(folder, base, device, dtype, host, port, limits, embeddings)


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

    counts = import_pairs(loaded, tables, images, out, named_columns(column))
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


@votes.callback()
def show_votes(context: typer.Context, params: ParamsFile = PARAMS) -> None:
    """List voters, their consistency and their agreement; export and import votes."""
    if context.invoked_subcommand is None:
        loaded = load_params(params)
        from lpo.commands.vote import show

        show(loaded)


@votes.command("export")
def votes_export(params: ParamsFile = PARAMS) -> None:
    """Write new votes into the inbox as pairs. `lpo ingest` does this too. Prints one line of JSON."""
    loaded = load_params(params)
    from lpo.commands.vote import export

    export(loaded)


@votes.command("import")
def votes_import(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A table (.csv, .tsv, .jsonl, .parquet) or the .json of Label Studio or Argilla.",
            exists=True, dir_okay=False,
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(help="The folder that image paths start from. Default: the file's.", metavar="FOLDER")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column of ours = the file's name for it. May be repeated.", metavar="prompt=text"),
    ] = None,
) -> None:  # fmt: skip
    """Import votes that were collected elsewhere: prompt, image a, image b, choice."""
    columns = named_columns(column)
    from lpo.commands.vote import import_file

    import_file(file, images or file.parent, columns)


@votes.command("figures")
def votes_figures(params: ParamsFile = PARAMS) -> None:
    """Say what people said: win rates with intervals, strengths, and whether to vote on. Writes metrics/people.json."""
    loaded = load_params(params)
    from lpo.commands.people import run

    run(loaded)


@votes.command("simulate")
def votes_simulate(
    url: Annotated[str, typer.Argument(metavar="URL", help="The address that `lpo vote` printed.")],
    voters: Annotated[int, typer.Option(min=1, max=1000, help="Annotators.", metavar="N")] = 8,
    answers: Annotated[int, typer.Option("--votes", min=1, help="Answers of each annotator.", metavar="N")] = 100,
    params: ParamsFile = PARAMS,
) -> None:
    """Let simulated annotators vote on the page of `lpo vote` (emoji world only). Prints one line of JSON."""
    loaded = load_params(params)
    from lpo.commands.team import run

    run(loaded.dataset, url, voters, answers, loaded.seed)


def named_columns(column: list[str] | None) -> dict[str, str]:
    """Our name -> theirs, of options such as caption=prompt. Raises LpoError if one names no column."""
    if wrong := [item for item in column or [] if not all(item.partition("="))]:
        raise LpoError(f"no column is named in {wrong[0]!r}", "--column", "write --column OURS=THEIRS: caption=prompt")
    return {item.partition("=")[0]: item.partition("=")[2] for item in column or []}
