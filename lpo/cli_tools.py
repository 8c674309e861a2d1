"""The commands that are not stages: generate, export, preset, doctor, rehearse, summary, vote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from lpo.cli_groups import PARAMS, Force, ParamsFile
from lpo.config import load_params
from lpo.outputs import check_file, check_folder

Stage = Literal["dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report"]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PLOTS = (".png", ".jpg", ".pdf", ".svg")
QUOTED = Path("docs/figures.json")  # in git, and written by this command alone
LARGEST_SEED = 2**32 - 1


def wrote(out: Path) -> None:
    """Say where the result is; on stderr, since `out` may be /dev/stdout."""
    typer.echo(f"wrote {out}", err=not out.is_file() and not out.is_dir())


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='For example "a cat left of a taxi at night".')],
    lora: Annotated[
        Path | None,
        typer.Option(
            help="A LoRA: a folder such as data/tuned, a .safetensors file, or a name that `lpo models` lists. "
            "Default: none, the base model draws."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.", metavar="FILE")] = Path(
        "image.png"
    ),
    force: Force = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the noise. Default: seed in the parameters.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, callback=_finite, help="Default: evaluate.guidance_scale.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: evaluate.num_inference_steps.")] = None,
    search: Annotated[
        int, typer.Option(min=1, help="Draw K candidates at every step; the reward chooses one.", metavar="K")
    ] = 1,
    best_of: Annotated[int, typer.Option(min=1, help="Draw N pictures; the reward chooses one.", metavar="N")] = 1,
    params: ParamsFile = PARAMS,
) -> None:
    """Draw one picture of a prompt."""
    check_file(out, "lpo generate", PICTURES, force)
    loaded = load_params(params)
    from lpo.commands.generate import run

    seed = loaded.seed if seed is None else seed
    if said := run(loaded, prompt, lora, out, seed, guidance_scale, steps, search, best_of, force):
        typer.echo(said, err=not out.is_file())
    wrote(out)


def export(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A name ending in .safetensors: write the LoRA there. Else: the folder to write the "
            "merged pipeline to."
        ),
    ],
    lora: Annotated[
        Path, typer.Option(help="A LoRA: a folder, a .safetensors file, or a name that `lpo models` lists.")
    ] = Path("data/tuned"),
    force: Force = False,
    params: ParamsFile = PARAMS,
) -> None:
    """Write a tuned model for other tools: merged into its base, or as one LoRA file."""
    if out.suffix == ".safetensors":
        check_file(out, "lpo export", force=force)
    else:
        check_folder(out, "lpo export")
    loaded = load_params(params)
    from lpo.commands.export import run

    run(loaded, lora, out, force)
    wrote(out)


def preset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset, or the path of a .yaml file.")],
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", show_default=False,
            help="Keep the work of each GPU with N of them: scales batches, steps and learning rates. Default: the "
            "preset's batches, which are for 4.",
        ),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Merge a preset into the parameters. Keeps the file's comments, and prints what changed."""
    from lpo.config.presets import apply_preset

    changes = apply_preset(name, params, gpus)
    typer.echo("\n".join(changes) if changes else f"{params} already holds the preset {name}")


def doctor(
    preset: Annotated[
        str | None, typer.Argument(metavar="PRESET", help="Check as if it were merged.", show_default=False)
    ] = None,
    first: Annotated[
        Stage, typer.Option("--from", help="The stage that would run first; it and those after it are checked.")
    ] = "dataset",
    params: ParamsFile = PARAMS,
) -> None:
    """Check that what a run needs is here: packages, data, models, memory, disk. Exits with 1 if it is not."""
    from lpo.commands.doctor import run
    from lpo.config.presets import with_preset

    if preset is None:
        passed = run(lambda: load_params(params), str(params), first)
    else:
        passed = run(lambda: with_preset(preset, params), f"{params} with the preset {preset}", first)
    if not passed:
        raise typer.Exit(1)


def rehearse(
    preset: Annotated[
        str | None, typer.Argument(metavar="PRESET", help="Rehearse as if it were merged.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each training, and of a picture.")] = 2,
    resolution: Annotated[
        int | None,
        typer.Option(min=64, help="Side of the pictures in pixels. Default: the preset's.", show_default=False),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Work in this new folder and keep it. Default: a folder that is deleted.", metavar="FOLDER"),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Run every stage of a preset for a few steps here, on full-size models of random weights.

    Prints seconds and peak memory by stage, and checks the gradients. Nothing is downloaded.
    """
    if keep is not None:
        check_folder(keep, "lpo rehearse")
    from lpo.commands.rehearse import run
    from lpo.config.presets import with_preset

    loaded = load_params(params) if preset is None else with_preset(preset, params)
    if not run(loaded, preset or str(params), steps, resolution, keep):
        raise typer.Exit(1)


def summary(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of README.md.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the figures that texts quote to a .json file: docs/figures.json.", metavar="FILE"),
    ] = None,
    force: Force = False,
) -> None:
    """Print the figures and where the report is."""
    if save is not None and save != QUOTED:
        check_file(save, "lpo summary", (".json",), force)
    from lpo.commands.summary import run

    run(markdown, save, force or save == QUOTED)


def vote(
    host: Annotated[
        str, typer.Option(help="The address to listen on. Other than loopback, the page's address holds a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    against: Annotated[
        str | None,
        typer.Option(help="base, promoted, tuned, or a folder of pictures. Default: vote.against.", metavar="WHAT"),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Open a page on which people compare pictures, blind. Ends with Ctrl-C; then see `lpo votes`."""
    loaded = load_params(params)
    if against is not None:
        loaded = replace(loaded, vote=replace(loaded.vote, against=against))
    from lpo.commands.vote import run

    run(loaded, host, port)
