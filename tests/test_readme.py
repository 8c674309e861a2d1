"""The documents as tests: the README quotes docs/figures.json, its commands are real, and what it names exists.

No test reads metrics/, metrics.json, plots/ or data/ products of the repository: a run rewrites them.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from lpo import cli
from lpo.config import check_params
from lpo.report.figures import table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(path for folder in (".", "docs", "data") for path in (ROOT / folder).glob("*.md"))
GENERATE = 'lpo generate "a cat left of a taxi at night"'


def commands(tool: str) -> list[list[str]]:
    """Every command line of a tool in README.md: lines of code blocks, and code in running text."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE))
    lines = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in [*blocks.splitlines(), *spans])
    found = [list(line) for line in lines if line and line[0] == tool]
    assert found
    return found


def yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(ROOT / name)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_the_python_of_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tiny: Any, tiny_reward: Any
) -> None:
    """The default's base; a LoRA and a reward of the tiny model's size would not fit it, so all three are tiny."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    monkeypatch.chdir(tmp_path)
    Path("data/tuned").mkdir(parents=True)
    Path("data/base").symlink_to(tiny_base)
    tiny.add_lora(2, 0)
    weights = {k: torch.full_like(v, 0.01) for k, v in tiny.lora_state().items()}
    tiny.save_lora(Path("data/tuned"), weights)
    tiny_reward.latent_space = tiny.codec.space()
    Path("data/reward").mkdir()
    tiny_reward.save(Path("data/reward"))
    Path("data/reward/README.md").write_text("---\nbase_model: data/base\n---\n")
    exec(compile(code, "README.md", "exec"), {})
    assert Path("best.png").read_bytes().startswith(b"\x89PNG")


def test_no_test_reads_what_a_run_rewrites() -> None:
    """`make run` and then `make test` is green with any parameters and data: no test reads their results here."""
    products = r"(metrics|plots|data/(?!base|scorers|validators|README|sources\.json|collected/\.gitignore)\w)"
    reads = re.compile(rf'\b(ROOT|REPOSITORY|repository)\s*/\s*f?"{products}', re.IGNORECASE)
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert [path.name for path in files if reads.search(path.read_text(encoding="utf-8"))] == []


def test_the_table_quotes_the_committed_figures() -> None:
    figures = json.loads((ROOT / "docs/figures.json").read_text())
    block = README.partition("<!-- figures -->\n")[2].partition("<!-- /figures -->")[0]
    assert block == table(figures), "put the output of `lpo summary --markdown` between the markers of README.md"


@pytest.mark.parametrize("words", commands("lpo"), ids=shlex.join)
def test_lpo_commands_are_real(project: Path, words: list[str]) -> None:
    """Parsed as the command line parses it: names, options, types, files that must exist (pictures are made up)."""
    for word in words:
        if word.endswith(".png"):
            Path(word).touch()
    if words[1:] == ["--help"]:
        assert CliRunner().invoke(cli.app, ["--help"]).stdout.startswith("Usage: lpo")
        return
    group: Any = get_command(cli.app)
    assert words[1] in group.commands
    group.commands[words[1]].make_context(words[1], words[2:])


def test_a_picture_is_drawn_as_the_readme_says(project: Path) -> None:
    (words,) = [line for line in commands("lpo") if line[:3] == shlex.split(GENERATE)]
    lora = words.index("--lora")
    Path("data").mkdir()
    Path("data/base").symlink_to(ROOT / "data/base")
    result = CliRunner().invoke(cli.app, [*words[1:lora], *words[lora + 2 :], "--steps", "2"])
    out = words[words.index("--out") + 1]
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"wrote {out}\n"
    assert Path(out).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", commands("dvc"), ids=shlex.join)
def test_dvc_commands_are_real(words: list[str]) -> None:
    from dvc.cli import parse_args

    parsed = parse_args(words[1:])
    assert set(getattr(parsed, "targets", None) or []) <= set(yaml("dvc.yaml")["stages"])
    tree = yaml("params.yaml")
    for change in getattr(parsed, "set_param", None) or []:
        path, _, value = change.partition("=")
        *sections, name = path.split(".")
        section = tree
        for key in sections:
            section = section[key]
        assert name in section
        section[name] = YAML(typ="safe", pure=True).load(value)
    check_params(tree, "params.yaml")


@pytest.mark.parametrize("words", commands("make"), ids=shlex.join)
def test_make_commands_are_real(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words[1:]:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if is_variable else rf"^{name}:.*##", makefile, re.MULTILINE), word
    run = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_table_of_stages_is_that_of_dvc() -> None:
    rows = re.findall(r"^\| (\w+) \| `lpo (\w+)` \| ([^|]+) \| ([^|]+) \|", ARCHITECTURE, re.MULTILINE)
    shown = {
        stage: (f"lpo {command}", *(set(re.findall(r"`([^`]+)`", cell)) for cell in cells))
        for stage, command, *cells in rows
    }
    expected = {}
    for name, stage in yaml("dvc.yaml")["stages"].items():
        outs = {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}
        outs = {out for out in outs if not out.startswith("metrics/")}
        deps = {dep.replace("${tune.reward}", "data/reward") for dep in stage["deps"]}
        reads = {dep for dep in deps if dep.startswith("data/")}
        expected[name] = (stage["cmd"], reads, outs)
    assert shown == expected


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_tests_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    files = set(re.findall(r"(?<![\w/])(?:lpo|tests)/[\w/]+\.\w+", text))
    assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []
    tests = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    assert [test for file, test in tests if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_every_decision_says_what_was_where_and_what_shows_it() -> None:
    entries = (ROOT / "docs/decisions.md").read_text(encoding="utf-8").split("\n### ")[1:]
    numbers = [int(entry.split(".")[0]) for entry in entries if entry[0].isdigit()]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 30
    for entry in entries:
        assert re.findall(r"^- (\w+):", entry, re.MULTILINE) == ["Published", "Here", "Code", "Test"], entry
