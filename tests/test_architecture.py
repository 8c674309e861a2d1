"""The architecture as a test: imports run one way, and what must be light is light. Files are parsed, not imported."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "lpo").rglob("*.py"))

# What a room imports from beside itself. Only downwards: `test_the_rooms_are_a_tower` holds the table itself to it.
GROUND = {"errors", "files", "format", "images", "config", "random"}
MATHS = GROUND | {"diffusion", "emoji"}
MODELS = MATHS | {"hub", "families", "preference", "scorers", "rewards"}
WORK = MODELS | {"data", "sampling", "evaluate", "train", "registry", "report", "doctor", "tracking"}
BELOW: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "format": set(),
    "images": {"errors"},
    "random": set(),
    "config": {"errors", "files"},
    "tracking": GROUND,
    "hub": GROUND,
    "emoji": GROUND,
    "diffusion": GROUND,
    "families": MATHS,
    "preference": MATHS,
    "scorers": MATHS | {"hub", "families"},
    "rewards": MATHS | {"hub", "families", "scorers"},  # a reward reads the features of a family's model
    "sampling": MODELS,
    "data": MODELS,
    "evaluate": MODELS | {"sampling"},
    "registry": GROUND | {"evaluate"},
    "report": GROUND | {"evaluate"},
    "doctor": MODELS,
    "train": MODELS | {"data", "tracking"},  # it reads the stored latents
    "stages": WORK,
    "study": WORK | {"stages"},
    "commands": WORK | {"stages"},
    "cli": GROUND | {"stages", "commands", "study", "cli_groups"},
    "cli_groups": GROUND | {"commands", "registry"},
}

HEAVY = {
    "accelerate", "diffusers", "dvclive", "great_expectations", "matplotlib", "numpy", "pandas", "peft", "PIL",
    "pyarrow", "safetensors", "scipy", "torch", "tqdm", "transformers", "wandb",
}  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "lpo").parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import, those inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            if node.module == "lpo":
                yield from ((node.lineno, f"lpo.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, str(node.module)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_rooms_are_a_tower() -> None:
    """Take away, again and again, the rooms that stand on nothing: nothing is left, so no circle is allowed."""
    left = dict(BELOW)
    while free := [room for room, below in left.items() if not below & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    allowed = BELOW[room] | {room}
    wrong = [
        f"{names(path)}:{line}: {module}"
        for line, module in imports(path)
        if module.startswith("lpo.") and module.split(".")[1] not in allowed
    ]
    assert wrong == [], f"{room} may import from {sorted(allowed)}"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_the_library_knows_neither_prefect_nor_dvc(path: Path) -> None:
    known = {module.split(".")[0] for _, module in imports(path)}
    assert not known & {"prefect", "dvc", "flows", "tasks"}
    assert not known & {"wandb", "dvclive"} or path.name == "tracking.py"


LIGHT = {"config", "errors", "files"}


@pytest.mark.parametrize("path", sorted([*(ROOT / "flows").glob("*.py"), *(ROOT / "tasks").glob("*.py")]), ids=names)
def test_flows_and_tasks_reach_the_pipeline_through_commands_only(path: Path) -> None:
    known = {module for _, module in imports(path)}
    assert not {module.split(".")[0] for module in known} & HEAVY
    assert {module.split(".")[1] for module in known if module.startswith("lpo.")} <= LIGHT
    assert path.parent.name == "flows" or not any(module.startswith("flows") for module in known)
    assert path.name == "runcache.py" or not any(module.split(".")[0] == "dvc" for module in known)
    test_a_file_can_be_read_in_one_go(path)


LIGHT_FILES = ["__init__", "cli", "cli_groups", "config/__init__", "config/presets", "config/reader", "errors", "files"]


@pytest.mark.parametrize("name", LIGHT_FILES)
def test_the_light_files_import_nothing_heavy_at_the_top(name: str) -> None:
    path = ROOT / "lpo" / f"{name}.py"
    assert not {module.split(".")[0] for _, module in imports(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_help_answers_at_once() -> None:
    program = f"""
import sys
from lpo.cli import main
sys.argv = ["lpo", "--help"]
try:
    main()
except SystemExit:
    print(sorted({HEAVY!r} & sys.modules.keys()))
"""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert out.startswith("Usage: lpo")
        assert out.splitlines()[-1] == "[]"
    assert min(seconds) < 0.5  # processor time: the machine may be busy
