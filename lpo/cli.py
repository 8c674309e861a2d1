"""The command line: a command a stage, and generate, score, preset, doctor, summary.

A command reads params.yaml and calls one `run` of lpo/stages. Those modules are imported after the parameters are
read: `lpo --help` answers at once, and so does a mistake in the parameters. A mistake that a person can mend is printed
without a traceback, and the exit code is 2.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from lpo.cli_groups import PARAMS, ParamsFile, data, models
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.files import TIMINGS, write_json

app = typer.Typer(
    name="lpo",
    help="Teach a text-to-image model what people prefer. The stages run in the order base, dataset, score, filter, "
    "encode, reward, tune, evaluate, report; `dvc repro` runs those whose inputs changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Study = Literal["quick", "methods", "ablations"]

app.add_typer(data, name="data")
app.add_typer(models, name="models")


@app.command()
def base(params: ParamsFile = PARAMS) -> None:
    """Stage: train the base model. Takes hours; its result is committed."""
    timed("base", load_params(params))


app.command("pretrain", help="The same as base.")(base)


@app.command()
def dataset(params: ParamsFile = PARAMS) -> None:
    """Stage: make pairs of pictures with labels."""
    timed("dataset", load_params(params))


@app.command()
def score(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="A picture, to see its score.", exists=True, show_default=False),
    ] = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Its prompt.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Where the plot goes.", metavar="FILE")] = Path("score.png"),
    params: ParamsFile = PARAMS,
) -> None:
    """Stage: score every picture. With IMAGE and PROMPT: plot the reward of one picture by timestep."""
    loaded = load_params(params)
    if image is None:
        timed("score", loaded)
        return
    if prompt is None:
        raise typer.BadParameter("give the prompt of the picture too: lpo score IMAGE PROMPT", param_hint="PROMPT")
    from lpo.commands.inspect import run as inspect

    inspect(loaded, image, prompt, out)
    typer.echo(f"wrote {out}")


@app.command("filter")
def filter_(params: ParamsFile = PARAMS) -> None:
    """Stage: check the pairs, keep the consistent.

    Rows that break the data contract go to quarantine; pairs whose scores disagree with the label are dropped.
    """
    timed("filter", load_params(params))


@app.command()
def encode(params: ParamsFile = PARAMS) -> None:
    """Stage: encode pictures and captions once."""
    timed("encode", load_params(params))


@app.command()
def reward(params: ParamsFile = PARAMS) -> None:
    """Stage: train the latent reward model."""
    timed("reward", load_params(params))


@app.command()
def spm(params: ParamsFile = PARAMS) -> None:
    """SPO's reward, a CLIP that looks at pictures (method spo)."""
    loaded = load_params(params)
    from lpo.study.spm import run

    run(loaded)


@app.command()
def tune(params: ParamsFile = PARAMS) -> None:
    """Stage: tune the base by preferences (a LoRA)."""
    timed("tune", load_params(params))


@app.command()
def evaluate(params: ParamsFile = PARAMS) -> None:
    """Stage: compare tuned and base, unseen prompts."""
    timed("evaluate", load_params(params))


@app.command()
def cell(params: ParamsFile = PARAMS) -> None:
    """One cell of a study: train on the clock, judge."""
    loaded = load_params(params)
    from lpo.study.cell import run

    run(loaded)


@app.command()
def flips(params: ParamsFile = PARAMS) -> None:
    """Do preferences flip with noise? For the study."""
    loaded = load_params(params)
    from lpo.study.flips import run

    run(loaded)


@app.command()
def verifier(params: ParamsFile = PARAMS) -> None:
    """What does choosing by the reward bring? For the study."""
    loaded = load_params(params)
    from lpo.study.verifier import run

    run(loaded)


@app.command()
def study(
    name: Annotated[Study, typer.Argument(metavar="NAME", help="quick, methods or ablations.")],
    out: Annotated[
        Path | None, typer.Option(help="Default: studies/results/NAME.", metavar="FOLDER", show_default=False)
    ] = None,
) -> None:
    """Table and page of a study's cells, and its part of docs/results.md."""
    from lpo.study.collect import run

    typer.echo(f"wrote {run(name, out or Path('studies/results') / name)}")


@app.command()
def report(params: ParamsFile = PARAMS) -> None:
    """Stage: write the page and the model card."""
    timed("report", load_params(params))


@app.command()
def ingest(params: ParamsFile = PARAMS) -> None:
    """Take new pairs out of the inbox. Prints one line of JSON; progress goes to stderr."""
    loaded = load_params(params)
    from lpo.commands.ingest import run

    run(loaded)


@app.command()
def promote(params: ParamsFile = PARAMS) -> None:
    """Take the tuned model into use if the gate holds.

    Prints one line of JSON; a refusal is no failure.
    """
    loaded = load_params(params)
    from lpo.commands.promote import run

    run(loaded)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='For example "a cat left of a taxi at night".')],
    lora: Annotated[
        Path | None, typer.Option(help="A folder, such as data/tuned, or a name of `lpo models`; without it: the base.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the picture goes.", metavar="FILE")] = Path("image.png"),
    seed: Annotated[int | None, typer.Option(help="Default: seed of the parameters.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: evaluate.guidance_scale.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: evaluate.num_inference_steps.")] = None,
    search: Annotated[int, typer.Option(min=1, help="Candidates a step, the reward takes the best.", metavar="K")] = 1,
    best_of: Annotated[int, typer.Option(min=1, help="Pictures, the reward takes the best.", metavar="N")] = 1,
    params: ParamsFile = PARAMS,
) -> None:
    """Draw one picture of a prompt."""
    loaded = load_params(params)
    from lpo.commands.generate import run

    seed = loaded.seed if seed is None else seed
    if said := run(loaded, prompt, lora, out, seed, guidance_scale, steps, search, best_of):
        typer.echo(said)
    typer.echo(f"wrote {out}")


@app.command()
def export(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder: the merged pipeline. A .safetensors file: the LoRA.")
    ],
    lora: Annotated[Path, typer.Option(help="A folder, a file, or a name of `lpo models`.")] = Path("data/tuned"),
    params: ParamsFile = PARAMS,
) -> None:
    """Write a tuned model for other tools: merged into its base, or as one LoRA file."""
    loaded = load_params(params)
    from lpo.commands.export import run

    run(loaded, lora, out)
    typer.echo(f"wrote {out}")


@app.command()
def preset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of presets/, without .yaml.")],
    params: ParamsFile = PARAMS,
) -> None:
    """Merge a preset into the parameters. Keeps the comments of the file, and shows what changed."""
    from lpo.config.presets import apply_preset

    changes = apply_preset(name, params)
    typer.echo("\n".join(changes) if changes else f"{params} already holds the preset {name}")


@app.command()
def doctor(
    preset: Annotated[
        str | None, typer.Argument(metavar="PRESET", help="As if it were merged already.", show_default=False)
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Check that what a run needs is here: packages, models, memory, disk."""
    from lpo.commands.doctor import run
    from lpo.config.presets import with_preset

    if preset is None:
        passed = run(lambda: load_params(params), str(params))
    else:
        passed = run(lambda: with_preset(preset, params), f"{params} with the preset {preset}")
    if not passed:
        raise typer.Exit(1)


@app.command()
def summary(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of README.md.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the figures that texts quote: docs/figures.json.", metavar="FILE")
    ] = None,
) -> None:
    """Print the figures and where the report is."""
    from lpo.commands.summary import run

    run(markdown, save)


def timed(stage: str, params: Params) -> None:
    """Run lpo/stages/STAGE.py, and keep how long it took with which model, for `lpo doctor`."""
    gc.disable()  # torch and diffusers make a million objects that stay: to look through them is a tenth of the import
    try:
        module = importlib.import_module(f"lpo.stages.{stage}")
    finally:
        gc.enable()
    started = time.monotonic()
    module.run(params)
    known = json.loads(TIMINGS.read_text()) if TIMINGS.exists() else {}
    took = {"seconds": round(time.monotonic() - started, 1), "model": params.model.path}
    write_json(TIMINGS, known | {stage: took})


def main() -> None:
    """The console script. Exits with 2 on an `LpoError`, whose message goes to stderr."""
    try:
        app()
    except LpoError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
