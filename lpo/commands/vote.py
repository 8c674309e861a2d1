"""vote: a page on which people compare pictures, blind. votes: what they said."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import pandas as pd
import typer

from lpo.commands.people import Enough
from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import write_parquet
from lpo.votes.consistency import agreement, judged, voters_frame
from lpo.votes.drawing import Drawing
from lpo.votes.export import export as export_votes
from lpo.votes.imports import import_votes, read_votes
from lpo.votes.names import simulated
from lpo.votes.questions import Rules
from lpo.votes.store import PATH, Store

LEFT_OUT = Path("data/refused/votes.parquet")  # rows of the last import, where there were any
INSTALL = "pip install 'lpo[serve]'"


def run(params: Params, host: str, port: int) -> None:
    """Serve the page until it is interrupted.

    Raises:
        LpoError: if the pictures that vote.against names are not there, or nothing can listen on the address.
    """
    typer.echo(f"votes go to {PATH}; stop with Ctrl-C", err=True)  # at once: the next imports take seconds
    from lpo.commands.vote_pairs import source_of

    try:
        from lpo.web.access import token_for
        from lpo.web.server import serve
        from lpo.web.vote import VotePage
    except ImportError as error:
        raise LpoError(f"the page needs the package {error.name}", "lpo vote", INSTALL) from error

    config = params.vote
    with closing(Store(PATH)) as store:
        source = source_of(params, store)
        rules = Rules(source.key, config.voters_per_pair, config.check_share, params.seed)
        with Drawing(store, source.key, source.produce, _tell) as drawing:
            token = token_for(host)
            enough = Enough(params)
            enough()  # what it imports takes seconds, which no voter should wait for
            serve(VotePage(store, rules, drawing, enough).app(token), host, port, token)


def show(params: Params) -> None:
    """Print how many votes there are, who gave them, and how far people agree."""
    frame = judged(PATH, params.vote.min_consistency)
    if frame.empty:
        typer.echo("no votes yet: lpo vote")
        return
    used = frame[frame["reason"] == ""]
    typer.echo(f"{len(used)} of {len(frame)} votes are used")
    for reason, count in frame.loc[frame["reason"] != "", "reason"].value_counts().items():
        typer.echo(f"  not used: {count}, {reason}")
    programs = simulated()
    for name, row in voters_frame(PATH).iterrows():
        checks = f"consistency {row.consistency:.2f} over {int(row.checks)} checks" if row.checks else "no checks yet"
        program = " (simulated)" if name in programs else ""
        typer.echo(f"{name}{program}: {int(row.votes)} votes, {checks}")
    alpha = agreement(frame)
    typer.echo(
        "agreement: needs two voters on the same pictures" if math.isnan(alpha)
        else f"agreement (Krippendorff's alpha): {alpha:.2f}"
    )  # fmt: skip


def export(params: Params) -> None:
    """Write new votes into the inbox, and print one line of JSON."""
    typer.echo(json.dumps(export_votes(PATH, params.ingest.source, params.vote.min_consistency)))


def import_file(file: Path, images: Path, columns: dict[str, str]) -> None:
    """Add the votes of a file to the store, and print what became of each row."""
    with closing(Store(PATH)) as store:
        counts, left = import_votes(store, read_votes(file, images, columns))
    typer.echo(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    LEFT_OUT.unlink(missing_ok=True)
    if left:
        table = pd.DataFrame([{"file": one.file, "row": one.row, "reason": one.reason} for one in left])
        write_parquet(LEFT_OUT, table)
        for reason, count in table["reason"].value_counts().head(5).items():
            typer.echo(f"  left out: {count} rows, {reason}")
        typer.echo(f"rows that were left out: {LEFT_OUT}")


def _tell(error: BaseException) -> None:
    """Why no more pictures are drawn. The page goes on with those that are there."""
    typer.secho(f"no more pictures can be drawn: {error}", fg=typer.colors.RED, err=True)
