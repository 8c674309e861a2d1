"""`lpo models publish`: the card and the reward of the last run go with the model that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from support.dvc_lock import md5_folder
from typer.testing import CliRunner

from lpo import cli
from lpo.errors import LpoError
from lpo.registry import ledger

WEIGHTS = ledger.WEIGHTS
Lab = Callable[[str], list[str]]


@pytest.fixture
def lab(project: Path) -> Lab:
    """A promoted model with its card and reward, as a run leaves them. Calling it publishes to the folder "share"."""
    for name in ("data/tuned", "data/reward", "data/report"):
        Path(name).mkdir(parents=True)
    save_file({"a": np.ones(3, np.float32)}, Path("data/tuned", WEIGHTS))
    Path("data/tuned/README.md").write_text("without figures")
    Path("data/reward/config.json").write_text("{}")
    Path("data/report/MODEL_CARD.md").write_text("with figures")
    outs = {
        name: {"path": name, "md5": md5_folder(Path(name))} for name in ("data/tuned", "data/reward", "data/report")
    }
    stages = {
        "tune": {"deps": [outs["data/reward"]], "outs": [outs["data/tuned"]]},
        "report": {"deps": [outs["data/tuned"]], "outs": [outs["data/report"]]},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    name = ledger.name_of(Path("data/tuned"))
    ledger.keep_files(Path("data/tuned"), name)
    made = {"data": {}, "params": {}, "revision": {"commit": "unknown", "changed": []}}
    ledger.append(
        {
            "event": "promoted",
            "name": name,
            "reason": "the gate holds",
            "against": "base",
            "metrics": {},
            "made_from": made,
        }
    )

    def send(card: str) -> list[str]:
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(text.replace("  folder: null", "  folder: share"))
        result = CliRunner().invoke(cli.app, ["models", "publish"])
        assert result.exit_code == 0, result.output
        assert Path("share", name, "README.md").read_text() == card
        return sorted(path.name for path in Path("share", name).iterdir())

    return send


def test_card_and_reward_of_the_last_run_are_sent(lab: Lab) -> None:
    assert lab("with figures") == ["README.md", "evaluation.json", "lineage.json", WEIGHTS, "reward"]


@pytest.mark.parametrize("changed", ["data/reward/config.json", "data/report/MODEL_CARD.md", f"data/tuned/{WEIGHTS}"])
def test_what_belongs_to_another_model_stays_at_home(lab: Lab, changed: str) -> None:
    Path(changed).write_bytes(b"of another run")
    card = "with figures" if changed.startswith("data/reward") else "without figures"
    assert ("reward" in lab(card)) == changed.startswith("data/report")


def test_without_a_place_or_a_model_there_is_a_message(project: Path) -> None:
    assert isinstance(CliRunner().invoke(cli.app, ["models", "publish"]).exception, LpoError)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("  folder: null", "  folder: share"))
    result = CliRunner().invoke(cli.app, ["models", "publish"])
    assert (result.exit_code, result.stdout) == (0, "base is in use, and nothing is published\n")


def test_a_place_that_fails_is_exit_code_1(lab: Lab) -> None:
    Path("share").write_text("a file in the way")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("  folder: null", "  folder: share"))
    result = CliRunner().invoke(cli.app, ["models", "publish"])
    assert result.exit_code == 1 and "pending: folder share" in result.stderr
