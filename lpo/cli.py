"""The command line: one command for each stage here, the other commands in lpo/cli_tools.py and lpo/cli_groups.py.

A command checks its output path, reads params.yaml, and calls one `run` of lpo/stages or lpo/commands. It imports that
module last, so that `lpo --help` and a mistake in the arguments or parameters answer at once. A mistake that the user
can fix is printed without a traceback, and the exit code is 2.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from lpo import cli_tools as tools
from lpo import timings
from lpo.cli_groups import PARAMS, Force, ParamsFile, data, models, serve, votes
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.outputs import check_file, check_folder
from lpo.paths import share_sources
from lpo.preflight import require
from lpo.resume import share_of
from lpo.timings import gpus
from lpo.train.common import launch

app = typer.Typer(
    name="lpo",
    help="Teach a text-to-image model what people prefer. The stages run in the order base, dataset, score, filter, "
    "encode, reward, tune, evaluate, report; `dvc repro` runs those whose inputs changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ShareOption = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="Make the K-th of N shares of the parts, and no output.", show_default=False),
]
Study = Literal["quick", "default", "trials", "methods", "ablations", "others", "hacking", "guidance", "few"]
STUDIES = Path("studies/results")

app.add_typer(data, name="data")
app.add_typer(models, name="models")
app.add_typer(serve, name="serve")
app.add_typer(votes, name="votes")


@app.command()
def base(params: ParamsFile = PARAMS) -> None:
    """Stage: train the base model. Takes hours; its result is committed."""
    timed("base", load_params(params))


app.command("pretrain", help="The same as base.")(base)


@app.command()
def dataset(params: ParamsFile = PARAMS) -> None:
    """Stage: make labelled pairs of pictures."""
    timed("dataset", load_params(params))


@app.command()
def score(
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", help="A picture, to see its score.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Its prompt.", show_default=False)] = None,
    out: Annotated[
        Path, typer.Option(help="The plot to write: .png, .jpg, .pdf or .svg.", metavar="FILE")
    ] = Path("score.png"),
    force: Force = False,
    share: ShareOption = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Stage: score every picture. With IMAGE and PROMPT: plot the reward of one picture by timestep."""
    if image is None:
        timed("score", load_params(params), share)
        return
    if prompt is None:
        raise typer.BadParameter("give the picture's prompt too: lpo score IMAGE PROMPT", param_hint="PROMPT")
    check_file(out, "lpo score", tools.PLOTS, force)
    loaded = load_params(params)
    from lpo.commands.inspect import run as inspect

    inspect(loaded, image, prompt, out, force)
    tools.wrote(out)


@app.command("filter")
def filter_(params: ParamsFile = PARAMS) -> None:
    """Stage: check the pairs and keep the consistent ones.

    Rows that break the data contract are quarantined. Pairs whose scores disagree with their label are dropped.
    """
    timed("filter", load_params(params))


@app.command()
def encode(share: ShareOption = None, params: ParamsFile = PARAMS) -> None:
    """Stage: encode pictures and captions once."""
    timed("encode", load_params(params), share)


@app.command()
def reward(params: ParamsFile = PARAMS) -> None:
    """Stage: train the latent reward model."""
    timed("reward", load_params(params), file=params)


@app.command()
def spm(params: ParamsFile = PARAMS) -> None:
    """Train SPO's reward, a CLIP that reads decoded pictures (for tune.method spo)."""
    loaded = load_params(params)
    if launch.by_several("spm", loaded, params):
        return
    from lpo.study.spm import run

    run(loaded)


@app.command()
def distill(params: ParamsFile = PARAMS) -> None:
    """Distill the embedded base into a U-Net of few steps, data/few (for model.denoiser)."""
    loaded = load_params(params)
    from lpo.study.distill import run

    run(loaded)


@app.command()
def tune(params: ParamsFile = PARAMS) -> None:
    """Stage: train a LoRA on the base by preferences."""
    timed("tune", load_params(params), file=params)


@app.command()
def evaluate(share: ShareOption = None, params: ParamsFile = PARAMS) -> None:
    """Stage: compare the tuned model with its base on unseen prompts."""
    timed("evaluate", load_params(params), share)


@app.command()
def cell(params: ParamsFile = PARAMS) -> None:
    """Study: train one cell for a fixed time and judge it."""
    loaded = load_params(params)
    from lpo.study.cell import run

    run(loaded)


@app.command()
def flips(params: ParamsFile = PARAMS) -> None:
    """Study: measure how often noise flips a preference."""
    loaded = load_params(params)
    from lpo.study.flips import run

    run(loaded)


@app.command()
def verifier(params: ParamsFile = PARAMS) -> None:
    """Study: measure what choosing pictures by the reward gains."""
    loaded = load_params(params)
    from lpo.study.verifier import run

    run(loaded)


@app.command()
def study(
    name: Annotated[Study, typer.Argument(metavar="NAME", help="One of studies/study.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write the table and the page to. Default: studies/results/NAME.", metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the table and the page of a study's cells, and its part of docs/results.md."""
    check_folder(out or STUDIES / name, "lpo study")
    from lpo.study.collect import run

    typer.echo(f"wrote {run(name, out or STUDIES / name)}")


@app.command()
def report(params: ParamsFile = PARAMS) -> None:
    """Stage: write the report and the model card."""
    timed("report", load_params(params))


@app.command()
def ingest(params: ParamsFile = PARAMS) -> None:
    """Move new pairs out of the inbox. Prints one line of JSON; progress goes to stderr."""
    loaded = load_params(params)
    from lpo.commands.ingest import run

    run(loaded)


@app.command()
def promote(params: ParamsFile = PARAMS) -> None:
    """Promote the tuned model if it passes the gate.

    Prints one line of JSON. A refusal is not a failure.
    """
    loaded = load_params(params)
    from lpo.commands.promote import run

    run(loaded)


for tool in (
    tools.generate, tools.export, tools.preset, tools.doctor, tools.rehearse, tools.summary, tools.vote
):  # fmt: skip
    app.command()(tool)


def timed(stage: str, params: Params, share: str | None = None, file: Path | None = None) -> None:
    """Run lpo/stages/STAGE.py if the check before the work passes, and keep its time for `lpo doctor`.

    share: K/N, only that share of its parts; then no time is kept. file: that of the parameters of a training, which
    may start itself again by several processes.
    """
    wanted = share_of(share) if share is not None else None
    share_sources()
    gc.disable()  # torch and diffusers make a million objects that stay: to look through them is a tenth of the import
    try:
        module = importlib.import_module(f"lpo.stages.{stage}")
    finally:
        gc.enable()
    require(params, stage)
    if wanted is not None:
        module.run(params, wanted)
        return
    started = time.monotonic()
    with gpus.measured(gpus.of_stage(stage, params.model.device) if launch.is_first() else []) as meter:
        if file is None or not launch.by_several(stage, params, file):
            module.run(params)
    if launch.is_first():
        timings.record(stage, time.monotonic() - started, params.model.path, meter.use)


def main() -> None:
    """The console script. Exits with 2 on an `LpoError`, whose message goes to stderr."""
    launch.follow()
    try:
        app()
    except Exception as error:
        launch.end(error)
        if not isinstance(error, LpoError):
            raise
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
