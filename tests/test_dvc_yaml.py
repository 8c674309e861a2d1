"""dvc.yaml against the code: a stage is stale after a change of any code or parameter that decides its result."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.source import ROOT, name_of, reached
from support.workspace import names

from lpo.config import Params

STAGES: dict[str, dict[str, Any]] = {
    name: stage
    for file in ("dvc.yaml", "studies/dvc.yaml")
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
UNTRACKED_BY_DVC = {"tracking", "ingest", "promote", "publish", "vote"}  # sections that decide no result

# Modules that stages import and that need not be among their deps, each with the reason.
NO_DEP = {
    "lpo/errors.py": "texts of errors, after which there is no result",
    "lpo/files.py": "writes what it is given, whole or not at all",
    "lpo/sampling/parts.py": "who does a part changes nothing in its result; held by tests/sampling/test_parts.py",
    "lpo/paths.py": "names of files; a new name is a change of dvc.yaml",
    "lpo/resume.py": "the folder of unfinished work, which is named after all code",
    "lpo/tracking.py": "what is tracked is read by no stage, and random states are restored after each call",
    "lpo/hub.py": "finds a file in a folder, in the cache or on the hub; what is in the file is what counts",
    "lpo/format.py": "numbers in texts that no stage reads",
    "lpo/report/cards.py": "the README.md beside the weights",
    "lpo/report/snippets.py": "the code in that README.md",
    "lpo/report/people_words.py": "what people said in that README.md",
    "lpo/registry/ledger.py": "where the promoted model lies; the folder itself is a dep",
    **{
        name_of(path): "reads params.yaml; the values are the stage's params"
        for path in (ROOT / "lpo/config").glob("*.py")
    },
}


def module_of(stage: str) -> Path:
    (path,) = (path for room in ("stages", "study") if (path := ROOT / f"lpo/{room}/{stage}.py").exists())
    return path


def code_of(stage: str) -> list[Path]:
    """Its deps that are code."""
    return [ROOT / name for name in names(STAGES[stage]["deps"]) if name == "lpo" or name.startswith("lpo/")]


def empty(path: Path) -> bool:
    """Whether a module holds nothing but its docstring."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def test_parameters_that_dvc_yaml_names_exist_and_every_section_is_named() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    named = {name for stage in STAGES.values() for name in stage["params"]}
    split = [name.partition(".") for name in named]
    assert [(section, key) for section, _, key in split if key and key not in params[section]] == []
    assert {section for section, _, _ in split} | UNTRACKED_BY_DVC == {field.name for field in fields(Params)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_parameters_that_its_code_reads(stage: str) -> None:
    tree = ast.parse(module_of(stage).read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("params", "self.params")
    }
    assert read - {name.partition(".")[0] for name in STAGES[stage]["params"]} <= {"tracking"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_command_and_its_code_is_there(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"lpo {stage}"
    assert [name_of(path) for path in code_of(stage) if not path.exists()] == []


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_module_that_a_stage_imports(stage: str) -> None:
    """Imports are followed through the whole library. A dep that covers none of them is one too many."""
    modules, deps = reached(module_of(stage)), code_of(stage)
    uncovered = {name_of(m) for m in modules if not empty(m) and not any(m.is_relative_to(dep) for dep in deps)}
    assert sorted(uncovered - NO_DEP.keys()) == []
    assert [name_of(dep) for dep in deps if not any(m.is_relative_to(dep) for m in modules)] == []
