from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.config import Params, load_params
from lpo.config.presets import PRESETS
from lpo.errors import LpoError

STAGES = ("base", "dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report")
SHARED = ("score", "encode", "evaluate")  # several machines can share their parts
Calls = list[tuple[Any, ...]]


def run(*args: str) -> Any:
    return CliRunner().invoke(cli.app, list(args))


def fake(monkeypatch: pytest.MonkeyPatch, name: str) -> Calls:
    """Replace a stage or a command, which would import torch, by a module that only records its calls."""
    calls: Calls = []
    path = f"lpo.stages.{name}" if name in STAGES else f"lpo.commands.{name}"
    module: Any = types.ModuleType(path)
    module.run = lambda *args: calls.append(args)
    monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(cli, "require", lambda params, stage: None)  # tests/preflight has the check before the work
    return calls


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The console script as a person meets it: (exit code, stdout, stderr)."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lpo", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_a_stage_runs_that_stage_with_the_parameters(
    project: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    calls = fake(monkeypatch, stage)
    assert run(stage).exit_code == 0
    assert calls == [(load_params("params.yaml"),)]


def test_a_share_goes_to_the_stages_that_have_parts_and_to_no_other(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in SHARED:
        calls = fake(monkeypatch, stage)
        assert run(stage, "--share", "2/4").exit_code == 0
        assert calls == [(load_params("params.yaml"), (2, 4))]
    assert run("filter", "--share", "2/4").exit_code == 2


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_the_parameters_and_at_most_a_share(repository: Path, stage: str) -> None:
    tree = ast.parse((repository / "lpo" / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    (run_,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert ast.unparse(run_.args) == "params: Params" + (", share: Share | None=None" if stage in SHARED else "")


def test_pretrain_is_base_and_another_parameter_file_can_be_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake(monkeypatch, "base")
    (project / "params.yaml").rename(project / "other.yaml")
    assert run("pretrain", "--params", "other.yaml").exit_code == 0
    assert calls == [(load_params("other.yaml"),)]


def test_score_with_a_picture_and_a_prompt_is_the_plot_and_needs_both(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, plot = fake(monkeypatch, "score"), fake(monkeypatch, "inspect")
    Path("cat.png").touch()
    assert run("score", "cat.png").exit_code == 2
    assert run("score", "absent.png", "a cat").exit_code == 2
    assert run("score", "cat.png", "a cat", "--out", "plot.png").exit_code == 0
    assert stage == []
    assert plot == [(load_params(), Path("cat.png"), "a cat", Path("plot.png"), False)]


def test_generate_takes_what_is_not_said_from_the_parameters(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, "generate")
    params: Params = load_params()
    assert run("generate", "a cat", "--lora", "data/tuned").exit_code == 0
    said = ("--out", "x.png", "--seed", "0", "--guidance-scale", "1", "--steps", "5")
    assert run("generate", "a cat", *said, "--search", "4", "--best-of", "2").exit_code == 0
    assert calls == [
        (params, "a cat", Path("data/tuned"), Path("image.png"), params.seed, None, None, 1, 1, False),
        (params, "a cat", None, Path("x.png"), 0, 1.0, 5, 4, 2, False),
    ]


def test_a_mistake_is_told_without_a_traceback_and_exits_with_2(
    project: Path, console: Callable[..., tuple[int, str, str]]
) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("seed: 42", "seed: -1"), encoding="utf-8")
    code, out, err = console("dataset")
    assert (code, out) == (2, "")
    assert "params.yaml: seed: must be >= 0, is -1" in err
    assert "Traceback" not in err


def test_a_bug_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "dataset")
    monkeypatch.setattr(sys.modules["lpo.stages.dataset"], "run", lambda params: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["lpo", "dataset"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_preset_keeps_comments_and_shows_what_it_changed(project: Path) -> None:
    before = Path("params.yaml").read_text(encoding="utf-8")
    Path("tiny.yaml").write_text(
        "tune: {beta: 100.0, threshold: {low: 0.4}, timestep_range: [250, 950]}\nreward: {max_grad_norm: null}\n"
    )
    result = run("preset", "tiny.yaml")
    assert result.exit_code == 0
    assert set(result.stdout.splitlines()) == {
        "tune.beta: 500.0 -> 100.0",
        "tune.threshold.low: 0.5 -> 0.4",
        "tune.timestep_range: [0, 1000] -> [250, 950]",
        "reward.max_grad_norm: 1.0 -> null",
    }
    after = Path("params.yaml").read_text(encoding="utf-8")
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 4
    assert all(a.partition("#")[2] == b.partition("#")[2] for a, b in changed)
    params = load_params()
    assert (params.tune.beta, params.tune.threshold.low, params.tune.timestep_range) == (100.0, 0.4, (250, 950))
    assert run("preset", "tiny.yaml").stdout == "params.yaml already holds the preset tiny.yaml\n"
    assert Path("params.yaml").read_text(encoding="utf-8") == after


@pytest.mark.parametrize(
    "preset",
    ["tune: {bata: 1}", "tune: {beta: -1}", "nonsense: 1", "tune: [", "seed: 1\nseed: 1", "filter: {table: null}"],
)
def test_a_preset_that_is_not_valid_changes_nothing(project: Path, preset: str) -> None:
    before = Path("params.yaml").read_bytes()
    Path("bad.yaml").write_text(preset)
    assert isinstance(run("preset", "bad.yaml").exception, LpoError)
    assert Path("params.yaml").read_bytes() == before


def test_a_preset_that_is_not_there_is_told_with_the_nearest(
    project: Path, console: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = console("preset", "emojy")
    assert code == 2
    assert "did you mean emoji?" in err
    assert console("preset", "../params")[0] == 2


def test_every_preset_of_the_repository_loads(project: Path) -> None:
    presets = sorted(PRESETS.glob("*.yaml"))
    assert PRESETS / "emoji.yaml" in presets
    default = Path("params.yaml").read_bytes()
    for preset in presets:
        Path("params.yaml").write_bytes(default)
        assert run("preset", preset.stem).exit_code == 0
        load_params()


def test_the_default_parameters_are_those_of_the_emoji_preset(project: Path) -> None:
    assert run("preset", "emoji").stdout == "params.yaml already holds the preset emoji\n"


def test_the_doctor_tells_what_is_missing(project: Path, repository: Path) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    rows = {line[6:25].strip(): line[:4] for line in result.stdout.splitlines()}
    assert (rows["python"], rows["torch"], rows["dvc"], rows["parameters"]) == ("ok  ",) * 4
    assert (rows["check"], rows["repository"]) == ("FAIL", "FAIL")
    assert "params.yaml: model.path: data/base" in result.stdout
    Path("data").mkdir()
    for name in ("base", "scorers", "validators"):
        Path(f"data/{name}").symlink_to(repository / "data" / name)
    Path(".dvc").mkdir()
    Path(".git").mkdir()
    assert run("doctor").exit_code == 0


def test_a_stage_that_ended_well_is_timed_with_its_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "filter")
    fake(monkeypatch, "inspect")
    assert run("filter").exit_code == 0
    known = json.loads(Path(".checkpoints/timings.json").read_text())
    assert known["filter"]["model"] == "data/base" and 0 <= known["filter"]["seconds"] < 60
    fake(monkeypatch, "score")
    monkeypatch.setattr(sys.modules["lpo.stages.score"], "run", lambda params: 1 / 0)
    Path("cat.png").touch()
    assert run("score").exit_code == 1 and run("score", "cat.png", "a cat").exit_code == 0
    assert json.loads(Path(".checkpoints/timings.json").read_text()) == known  # one failed, one was no stage


def test_help_names_every_stage() -> None:
    lines = run("--help").stdout
    commands = [line.split()[0] for line in lines.partition("Commands:")[2].splitlines() if line.strip()]
    assert [name for name in commands if name in STAGES] == list(STAGES)
    assert {"pretrain", "generate", "preset", "doctor", "summary"} < set(commands)


def test_help_answers_at_once() -> None:
    program = """
import sys
from lpo.cli import main
sys.argv = ["lpo", "--help"]
try:
    main()
except SystemExit:
    print(sorted({"numpy", "pandas", "torch", "diffusers", "transformers"} & sys.modules.keys()))
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
