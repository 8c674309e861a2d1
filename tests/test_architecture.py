"""The architecture as a test: imports run one way, and what must be light is light. Files are parsed, not imported.

Each test collects all offenders and asserts that there are none.
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from support.source import ROOT, imports, library, name_of

LIBRARY = sorted((ROOT / "lpo").rglob("*.py"))
ABOVE = sorted([*(ROOT / "flows").glob("*.py"), *(ROOT / "tasks").glob("*.py")])  # Prefect's half

# What a room imports from beside itself. Only downwards: no circle is allowed in the table.
GROUND = {"errors", "files", "format", "outputs", "images", "tables", "config", "random", "paths", "resume",
          "statistics", "timings"}  # fmt: skip
MATHS = GROUND | {"diffusion", "emoji"}
MODELS = MATHS | {"hub", "families", "preference", "scorers", "rewards"}
WORK = MODELS | {"data", "sampling", "evaluate", "train", "registry", "report", "doctor", "tracking", "votes"}
BELOW: dict[str, set[str]] = {
    "__init__": {"rewards"},  # inside functions only: it is light
    "errors": set(),
    "files": {"errors"},
    "format": set(),
    "images": {"errors"},
    "random": set(),
    "tables": {"errors"},
    "paths": set(),
    "timings": {"files", "paths"},
    "resume": {"errors", "files"},
    "statistics": {"errors"},
    "outputs": {"errors", "files"},
    "config": {"errors", "files", "outputs"},
    "tracking": GROUND,
    "hub": GROUND,
    "emoji": GROUND,
    "diffusion": GROUND,
    "families": MATHS | {"hub"},
    "preference": MATHS,
    "scorers": MATHS | {"hub", "families"},
    "rewards": MATHS | {"hub", "families", "scorers"},  # a reward reads the features of a family's model
    "sampling": MODELS,
    "data": MODELS | {"sampling", "evaluate"},  # the simulated source draws; prompt files
    "evaluate": MODELS | {"sampling"},
    "votes": GROUND | {"data"},
    "registry": GROUND | {"evaluate", "votes"},
    "report": GROUND | {"evaluate", "votes"},
    "doctor": MODELS,
    "train": MODELS | {"data", "sampling", "tracking"},
    "publish": GROUND | {"hub", "registry"},
    "web": WORK,
    "stages": WORK,
    "study": WORK,
    "preflight": WORK,
    "rehearsal": WORK,
    "commands": WORK | {"preflight", "rehearsal", "web", "publish"},
    "cli": GROUND | {"stages", "commands", "study", "preflight", "train", "cli_tools", "cli_groups"},
    "cli_tools": GROUND | {"commands", "cli_groups"},
    "cli_groups": GROUND | {"commands", "registry", "web"},
}

HEAVY = {
    "accelerate", "diffusers", "dvclive", "great_expectations", "matplotlib", "numpy", "pandas", "peft", "PIL",
    "pyarrow", "safetensors", "scipy", "starlette", "torch", "tqdm", "transformers", "uvicorn", "wandb",
}  # fmt: skip
LIGHT_FILES = {
    "lpo/__init__.py", "lpo/cli.py", "lpo/cli_groups.py", "lpo/cli_tools.py", "lpo/outputs/__init__.py",
    "lpo/outputs/ownership.py", "lpo/preflight/__init__.py", "lpo/config/__init__.py", "lpo/train/common/launch.py",
    "lpo/config/presets.py", "lpo/config/scaling.py",
    "lpo/config/reader.py", "lpo/errors.py", "lpo/files.py", "lpo/paths.py", "lpo/timings/__init__.py",
    "lpo/timings/gpus.py",
}  # fmt: skip
LIGHT_ROOMS = {"config", "errors", "files", "timings"}  # what flows and tasks may import of the library
TRACKERS = {"tracking.py", "wandb_registry.py"}
OUTSIDE = {"prefect", "dvc", "flows", "tasks"}  # what the library does not know


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "lpo").parts[0].removesuffix(".py")


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def test_imports_run_one_way() -> None:
    """By the table, which has no circle; no circle between files as they are loaded; no stage imports another one."""
    wrong = cycle(BELOW)
    files: dict[str, set[str]] = {}
    for path in LIBRARY:
        room, name = room_of(path), name_of(path)
        allowed = BELOW[room] | ({room} if room != "stages" else set())
        own = [found for found in imports(path) if found[1].startswith("lpo.")]
        wrong += [f"{name}:{line}: {module}" for line, module, _ in own if module.split(".")[1] not in allowed]
        files[name] = {name_of(file) for file in library(path, at_the_top=True)}
    assert wrong + cycle(files) == []


def test_the_library_knows_neither_prefect_nor_dvc_and_these_know_commands_only() -> None:
    wrong = []
    for path in LIBRARY + ABOVE:
        place = "lpo" if path in LIBRARY else path.parent.name
        for line, module, _ in imports(path):
            package, _, rest = module.partition(".")
            if (
                (place == "lpo" and package in OUTSIDE)
                or (place == "lpo" and package in {"wandb", "dvclive"} and path.name not in TRACKERS)
                or (place != "lpo" and package == "lpo" and rest.split(".")[0] not in LIGHT_ROOMS)
                or (place != "lpo" and package == "dvc" and path.name != "runcache.py")
                or (place == "tasks" and package == "flows")
            ):
                wrong.append(f"{name_of(path)}:{line}: {module}")
    assert wrong == []


def test_light_files_stay_light() -> None:
    """Nothing heavy at the top of what every command imports, and nowhere in flows and tasks."""
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for path in LIBRARY + ABOVE
        for line, module, top in imports(path)
        if module.split(".")[0] in HEAVY and (path in ABOVE or (top and name_of(path) in LIGHT_FILES))
    ]
    assert wrong + [name for name in LIGHT_FILES if not (ROOT / name).exists()] == []


def test_a_file_has_at_most_300_lines_and_a_room_at_most_15_files() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY + ABOVE}
    rooms = Counter(name_of(path.parent) for path in LIBRARY if path.name != "__init__.py")
    wrong = [f"{name}: {count} lines" for name, count in lines.items() if count > 300]
    assert wrong + [f"{room}/: {count} files" for room, count in rooms.items() if count > 15] == []
