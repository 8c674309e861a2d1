"""The documents as tests: the README's figures are those of metrics/, its commands are real, what is named exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from lpo import cli
from lpo.config import check_params

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "data").glob("*.md"))]
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


@pytest.mark.skipif(not (ROOT / "metrics/evaluate.json").exists(), reason="nothing was evaluated yet")
def test_the_figures_are_those_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed = CliRunner().invoke(cli.app, ["summary", "--markdown"]).stdout
    block = README.partition("<!-- figures -->\n")[2].partition("<!-- /figures -->")[0]
    assert block == printed, "put the output of `lpo summary --markdown` between the markers of README.md"


def test_the_table_of_figures_by_hand(project: Path) -> None:
    rate = {"value": 0.7, "low": 0.6512, "high": 0.75, "prompts": 1400}
    right = {"base": 0.5, "tuned": 0.55, "difference": 0.05, "low": -0.01, "high": 0.11}
    bins = [{"t_low": 100 * k, "t_high": 100 * k + 100, "value": 0.8 - k / 20, "low": 0.1, "high": 0.9}
            for k in range(5)]  # fmt: skip
    metrics = {
        "evaluate": {"win_rate": dict.fromkeys(("overall", "alignment", "aesthetics"), rate), "all_correct": right},
        "reward": {"accuracy": {"mean": 0.714, "by_timestep": bins}},
        "filter": {"by_split": {"train": {"input": 2000, "kept": 500}}},
    }
    Path("metrics").mkdir()
    for stage, content in metrics.items():
        Path(f"metrics/{stage}.json").write_text(json.dumps(content))
    lines = CliRunner().invoke(cli.app, ["summary", "--markdown"]).stdout.splitlines()
    reward = "| Reward model right on held-out pairs:"
    assert lines == [
        "| figure | value | 95 % interval |",
        "| --- | --- | --- |",
        "| Tuned model wins over its base: overall | 70.0 % | 65.1 to 75.0 % |",
        "| Tuned model wins over its base: what the prompt asks for | 70.0 % | 65.1 to 75.0 % |",
        "| Tuned model wins over its base: looks | 70.0 % | 65.1 to 75.0 % |",
        "| Pictures right in everything, before | 50.0 % | |",
        "| Pictures right in everything, after | 55.0 % | |",
        "| Pictures right in everything, change | +5.0 points | −1.0 to +11.0 points |",
        f"{reward} mean over timesteps | 71.4 % | |",
        f"{reward} t from 0 to 100 | 80.0 % | 10.0 to 90.0 % |",
        f"{reward} t from 200 to 300 | 70.0 % | 10.0 to 90.0 % |",
        f"{reward} t from 400 to 500 | 60.0 % | 10.0 to 90.0 % |",
        "| Training pairs that the filter keeps | 500 of 2\u2009000 (25.0 %) | |",
        "",
        "1\u2009400 held-out prompts. Both models draw them from the same noise at the same guidance scale; a tie "
        "counts half. Intervals come from drawing prompts again.",
    ]


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
    rows = re.findall(r"^\| (\w+) \| `lpo (\w+)` \| ([^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    shown = {
        stage: (f"lpo {command}", *(set(re.findall(r"`([^`]+)`", cell)) for cell in cells))
        for stage, command, *cells in rows
    }
    expected, reward = {}, yaml("params.yaml")["tune"]["reward"]
    for name, stage in yaml("dvc.yaml")["stages"].items():
        outs = {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}
        deps = {dep.replace("${tune.reward}", reward) for dep in stage["deps"]}
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
