"""The table of `make nights`, and that a stopped run resumes with the night that it was in. Its commands are faked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.made_up_run import people

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nights", ROOT / "studies/nights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_a_night_and_a_stopped_run_resumes(
    nights: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def night(clone: Any, number: int, voters: int, votes: int) -> dict[str, Any]:
        done.append(number)
        if done == [1, 2]:
            raise KeyboardInterrupt
        change = {"base": 0.6, "tuned": 0.65, "difference": 0.05}
        means = {"alignment": change, "aesthetics": {"base": 6.0, "tuned": 5.9, "difference": -0.1}}
        decision = {"promoted": number == 3, "waits": number == 1, "reason": "", "name": "lpo-1"}
        evaluate = {"means": means, "all_correct": change}
        return {"night": number, "new_pairs": 100 * (number > 1), "decision": decision, "evaluate": evaluate,
                "people": people(), "reward": 0.7, "minutes": 5.0}  # fmt: skip

    monkeypatch.setattr(nights, "night", night)
    monkeypatch.setattr(nights, "prepare", lambda folder, settings: nights.Clone(folder))
    words = ["--folder", str(tmp_path), "--nights", "3"]
    with pytest.raises(KeyboardInterrupt):
        nights.main(words)
    nights.main(words)
    assert done == [1, 2, 2, 3] and len(json.loads((tmp_path / "nights.json").read_text())) == 3
    first, second, third = capsys.readouterr().out.splitlines()[2:5]
    changes = "0.650 (+0.050) | 5.900 (−0.100) | 0.650 (+0.050)"
    assert first == f"| 1 | 0 | 70.0% | {changes} | 64.0% (55.0% to 72.0%) | 210 | waits | 5 |"
    assert second.startswith("| 2 | 100 | ") and second.endswith("| refused | 5 |")
    assert third.startswith("| 3 | 200 | ") and third.endswith("| promoted | 5 |")


def test_the_settings_are_a_valid_change_of_the_parameters(nights: ModuleType, project: Path) -> None:
    from lpo.config.presets import with_preset

    params = with_preset(str(ROOT / "studies/nights.yaml"), Path("params.yaml"))
    assert params.promote.people.votes > 0 and params.dataset.source == "simulated"
