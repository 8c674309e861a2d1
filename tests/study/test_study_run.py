"""The runner of the study: what it would run. Nothing is trained here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml
from support.defaults import default_params

from lpo.config import check_params
from lpo.study import evidence
from lpo.train.policy.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
STUDY = yaml.safe_load((ROOT / "studies/study.yaml").read_text())


def by_code(code: str) -> Callable[[str], str]:
    """A fingerprint that is the same for every reward."""
    return lambda reward: code


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_run", ROOT / "studies/run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_run", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["quick", "trials", "methods", "ablations", "others", "hacking", "default", "guidance", "few"]
)
def test_every_cell_is_a_valid_change_of_the_parameters(runner: ModuleType, name: str) -> None:
    for cell in runner.cells_of(STUDY, name, by_code("")):
        tree = yaml.safe_load(default_params())
        for path, value in cell.changes.items():
            *sections, last = path.split(".")
            section = tree
            for key in sections:
                section = section[key]
            assert last in section, path
            section[last] = yaml.safe_load(str(runner._written(value)))
        check_params(tree, "params.yaml")


def test_the_grid_is_arms_times_seeds_with_every_method_and_the_reference_first(runner: ModuleType) -> None:
    quick, trials, methods, ablations = (
        runner.cells_of(STUDY, name, by_code("")) for name in ("quick", "trials", "methods", "ablations")
    )
    names = ("others", "hacking", "default", "guidance", "few")
    others = [cell for name in names for cell in runner.cells_of(STUDY, name, by_code(""))]
    assert {cell.arm for cell in quick} <= set(METHODS) and quick[0].arm == "lpo"
    arms = {arm for question in STUDY["questions"].values() for arm in question["arms"]} | {"lpo"}
    everything = methods + ablations
    assert {cell.arm for cell in everything + others + trials} == arms, "`make study` runs the first two"
    assert {cell.changes.get("tune.method", "lpo") for cell in everything + others} == set(METHODS)
    by_method = Counter(cell.changes.get("tune.method", "lpo") for cell in trials)
    assert set(by_method) == {cell.changes.get("tune.method", "lpo") for cell in quick}
    assert len(set(by_method.values())) == 1, "as many trials a method"
    for name, cells in (("methods", methods), ("ablations", ablations)):
        seeds, count = STUDY[name]["seeds"], len({cell.arm for cell in cells})
        for path in STUDY[name]["seeds_of"]:
            assert [cell.changes[path] for cell in cells] == [seed for seed in seeds for _ in range(count)]
        assert cells[0].arm == "lpo" and len(seeds) > 1
    assert len({cell.experiment for cell in everything}) == len(everything)
    assert all("seed" not in cell.changes for cell in everything) and {cell.changes["seed"] for cell in quick} == {42}
    assert set(STUDY["paper"]) - {"columns", "base"} <= arms


def test_a_key_belongs_to_changes_and_code(runner: ModuleType) -> None:
    one, other = (runner.cells_of(STUDY, "quick", by_code(code))[0] for code in ("a", "b"))
    assert one.key != other.key and one.key != runner.cells_of(STUDY, "methods", by_code("a"))[0].key
    assert one.key == runner.cells_of(STUDY, "quick", by_code("a"))[0].key


def test_only_a_cell_whose_key_is_there_is_done(runner: ModuleType) -> None:
    cell = runner.cells_of(STUDY, "quick", by_code("a"))[1]
    assert not cell.done
    for key in ("another", cell.key):
        frame = pd.DataFrame({"prompt": ["p"], "seed": [0], "snapshot": [0], "validation": [0.0]})
        evidence.add(cell.study, cell.name, {"arm": cell.arm, "key": key}, frame, None, runner.ROOT / "studies")
        assert cell.done == (key == cell.key)


def test_the_command_is_an_experiment_in_a_copy_with_a_name_that_git_takes(runner: ModuleType) -> None:
    by_arm = {cell.arm: cell for cell in runner.cells_of(STUDY, "ablations", by_code("a"))}
    words = runner.command(by_arm["vfe_7.5"])
    assert words[:4] == ["dvc", "exp", "run", "--temp"] and words[-1] == "studies/dvc.yaml:cell"
    assert "reward.guidance_scale=7.5" in words and f"study.seed={STUDY['ablations']['seeds'][-1]}" in words
    assert "reward.shared_noise=true" in runner.command(by_arm["shared_noise"])
    for cell in by_arm.values():
        subprocess.run(["git", "check-ref-format", f"refs/exps/aa/bb/{cell.experiment}"], check=True)
        assert "." not in cell.experiment and "_" not in cell.experiment


def edited(runner: ModuleType, root: Path, file: str) -> dict[str, bool]:
    """Whether a line at the end of a file changes the fingerprint, by reward."""
    runner.fingerprint.cache_clear()
    before = {reward: runner.fingerprint(reward) for reward in runner.REWARDS}
    runner.fingerprint.cache_clear()
    with (root / file).open("a") as out:
        out.write("\n# another line\n")
    return {reward: runner.fingerprint(reward) != before[reward] for reward in runner.REWARDS}


@pytest.mark.slow
def test_a_fingerprint_holds_what_decides_a_cell_and_nothing_else(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    tracked = subprocess.run(["git", "ls-files", "lpo", "data", "studies", "*.yaml"], cwd=ROOT, capture_output=True)
    for name in tracked.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(default_params())
    monkeypatch.setattr(runner, "ROOT", root)
    both, neither = {"data/reward": True, "data/spm": True}, {"data/reward": False, "data/spm": False}
    assert edited(runner, root, "lpo/stages/report.py") == edited(runner, root, "lpo/study/page.py") == neither
    assert edited(runner, root, "params.yaml") == neither  # a comment
    assert edited(runner, root, "lpo/train/policy/trainer.py") == edited(runner, root, "lpo/data/simulated.py") == both
    assert edited(runner, root, "data/base/scheduler/scheduler_config.json") == both
    assert edited(runner, root, "lpo/study/spm.py") == {"data/reward": False, "data/spm": True}
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("temperature: 0.3", "temperature: 0.4"))
    before = runner.fingerprint("data/reward")
    runner.fingerprint.cache_clear()
    assert runner.fingerprint("data/reward") != before


def test_an_arm_that_the_study_has_not_is_refused(
    runner: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ROOT", ROOT)
    with pytest.raises(SystemExit) as ended:
        runner.main(["ablations", "--arms", "beta_20", "betta_20", "spo"])
    assert ended.value.code == 2
    assert "ablations has no betta_20, spo; nothing was run" in capsys.readouterr().err
