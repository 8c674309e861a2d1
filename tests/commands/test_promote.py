"""Promotion on files: the gate decides, the ledger remembers, the weights follow; a kill leaves nothing half done."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.dvc_lock import md5_folder, write_lock

from lpo.commands import promote
from lpo.config import People, load_params
from lpo.errors import LpoError
from lpo.files import file_hash
from lpo.registry import ledger

WEIGHTS = "pytorch_lora_weights.safetensors"


def train(value: float, low: float = 0.55) -> str:
    """What `dvc repro` would leave after a training: weights of `value`, their figures, dvc.lock. The model's name."""
    lora = Path("data/tuned")
    lora.mkdir(parents=True, exist_ok=True)
    save_file({"unet.a": np.full(3, value, np.float32)}, lora / WEIGHTS)
    (lora / "README.md").write_text(f"model {value}")
    write_figures(low)
    return f"lpo-{file_hash(lora / WEIGHTS)[:12]}"


def write_figures(low: float) -> None:
    """Figures of what lies in data/tuned against what lies in models/promoted, and dvc.lock."""
    change = {"base": 0.5, "tuned": 0.5, "difference": 0.0, "low": 0.0, "high": 0.0, "prompts": 9}
    rate = {"value": 0.6, "low": low, "high": 0.7, "ties": 0.0, "prompts": 9}
    figures: dict[str, Any] = {
        "win_rate": {"overall": rate}, "all_correct": change,
        "means": dict.fromkeys(("alignment", "aesthetics"), change),
        "scorers": dict.fromkeys(("clip", "vqa", "aesthetic"), change),
    }  # fmt: skip
    if (ledger.PROMOTED / WEIGHTS).exists():
        figures["promoted"] = {"name": ledger.name_of(ledger.PROMOTED)} | figures
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/evaluate.json").write_text(json.dumps(figures))
    write_lock()


@pytest.fixture
def lab(project: Path) -> Path:
    ledger.PROMOTED.mkdir(parents=True)
    (ledger.PROMOTED / ".gitignore").write_text("*\n")
    return project


@pytest.fixture
def decide(lab: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call() -> dict[str, Any]:
        capsys.readouterr()
        promote.run(load_params())
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        found: dict[str, Any] = json.loads(lines[0])
        assert set(found) == {"promoted", "waits", "reason", "name", "pending"}
        return found

    return call


def promoted() -> str | None:
    return ledger.name_of(ledger.PROMOTED) if (ledger.PROMOTED / WEIGHTS).exists() else None


def test_a_model_that_passes_the_gate_is_taken_into_use_and_recorded(decide: Any) -> None:
    name = train(1.0)
    assert decide() == {"promoted": True, "waits": False, "reason": "the gate holds", "name": name, "pending": []}
    assert promoted() == name
    assert sorted(path.name for path in Path("models", name).iterdir()) == ["README.md", WEIGHTS]
    (record,) = ledger.read_ledger()
    assert (record["event"], record["name"], record["against"]) == ("promoted", name, "base")
    assert record["metrics"] == json.loads(promote.FIGURES.read_text())
    made = record["made_from"]
    assert made["data"]["data/tuned"] == md5_folder(Path("data/tuned"))
    assert made["params"]["tune"] == {"tune": {"beta": 150.0}}
    assert made["gate"]["win_rate_low"] == 0.5
    assert made["revision"] == {"commit": "unknown", "changed": []}


def test_a_gate_that_waits_for_votes_records_nothing(decide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = load_params()
    params = replace(asked, promote=replace(asked.promote, people=People(votes=50, win_rate_low=0.5)))
    monkeypatch.setattr(promote.run.__module__ + ".what_people_said", lambda params: said)
    monkeypatch.setattr(sys.modules[__name__], "load_params", lambda: params)
    train(1.0)
    row = {"opponent": "base@1", "win_rate": None, "stopping": {"low": 0.0, "high": 1.0}}
    said = {"against": {"base": row}}
    found = decide()
    assert (found["promoted"], found["waits"]) == (False, True) and "0 of 50 against the base" in found["reason"]
    assert ledger.read_ledger() == [] and promoted() is None
    row |= {"win_rate": {"value": 0.7, "low": 0.6, "high": 0.8, "votes": 50}, "stopping": {"low": 0.55, "high": 0.9}}
    assert decide()["promoted"]
    assert ledger.read_ledger()[0]["metrics"]["people"] == said


def test_the_same_model_again_does_nothing(decide: Any) -> None:
    name = train(1.0)
    decide()
    before = ledger.LEDGER.read_bytes()
    known = {"reason": "it is the promoted model already", "name": name, "pending": []}
    assert decide() == {"promoted": False, "waits": False} | known
    write_figures(0.1)  # evaluated again, against itself
    assert not decide()["promoted"]
    assert ledger.LEDGER.read_bytes() == before


def test_a_refusal_is_recorded_once_and_changes_nothing_else(decide: Any) -> None:
    first = train(1.0)
    decide()
    second = train(2.0, low=0.45)
    found = decide()
    assert (found["promoted"], found["name"]) == (False, second)
    assert "against the base" in found["reason"] and f"against the promoted model {first}" in found["reason"]
    assert promoted() == first and not Path("models", second).exists()
    assert decide() == found
    assert [record["event"] for record in ledger.read_ledger()] == ["promoted", "refused"]
    write_figures(0.55)  # the same weights, other figures: a new decision
    assert decide()["promoted"]


def test_figures_of_another_model_or_opponent_are_not_used(decide: Any) -> None:
    train(1.0)
    lock = Path("dvc.lock").read_text()
    with pytest.raises(LpoError, match="data/tuned, as evaluated"):
        train(2.0)
        Path("dvc.lock").write_text(lock)
        decide()
    train(1.0)
    promote.FIGURES.write_text(promote.FIGURES.read_text().replace("0.55", "0.56"))
    with pytest.raises(LpoError, match="metrics/evaluate.json"):
        decide()
    train(1.0)
    (ledger.PROMOTED / "another").touch()
    with pytest.raises(LpoError, match="models/promoted, as evaluated"):
        decide()
    Path("dvc.lock").unlink()
    with pytest.raises(LpoError, match="no record of how the model was made"):
        decide()
    assert ledger.read_ledger() == []


def test_without_a_model_there_is_a_message(decide: Any) -> None:
    with pytest.raises(LpoError, match="no LoRA here"):
        decide()


@pytest.mark.parametrize("cut", ["keep_files", "append", "settle"])
def test_killed_anywhere_the_next_call_ends_as_if_never_cut_off(
    decide: Any, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """`settle` is cut off after the ledger: its first call has nothing to do, the second is the promotion."""
    name = train(1.0)
    real, calls = getattr(promote, cut), []

    def killed(*args: Any) -> None:
        calls.append(args)
        if cut == "settle" and len(calls) == 1:
            return real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promote, cut, killed)
        with pytest.raises(KeyboardInterrupt):
            decide()
    assert promoted() is None
    found = decide()
    assert found["name"] == name and promoted() == name
    assert [record["event"] for record in ledger.read_ledger()] == ["promoted"]


def test_rollback_goes_back_step_by_step_and_is_recorded(decide: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for value in (1.0, 2.0, 3.0):
        names.append(train(value))
        assert decide()["promoted"]
    ledger.rollback(None)
    assert json.loads(capsys.readouterr().out) == {"in_use": names[1], "before": names[2]}
    assert promoted() == names[1]
    ledger.rollback(None)
    assert promoted() == names[0]
    ledger.rollback(None)
    assert promoted() is None
    with pytest.raises(LpoError, match="nothing can be rolled back"):
        ledger.rollback(None)
    ledger.rollback(names[2])
    assert promoted() == names[2]
    assert [record["event"] for record in ledger.read_ledger()] == ["promoted"] * 3 + ["rolled_back"] * 4
    ledger.rollback(ledger.BASE)
    assert promoted() is None


def test_what_was_rolled_back_is_not_promoted_again_by_itself(decide: Any) -> None:
    first, second = train(1.0), None
    decide()
    second = train(2.0)
    decide()
    ledger.rollback(None)
    write_figures(0.55)  # the next night evaluates it against the first again
    found = decide()
    assert not found["promoted"] and f"`lpo models rollback {second}`" in found["reason"]
    assert promoted() == first
    ledger.rollback(second)
    assert promoted() == second


@pytest.mark.parametrize("name", ["../data/tuned", "/etc", "lpo-000000000000", "promoted", ".", ""])
def test_only_a_promoted_model_can_be_named(decide: Any, name: str) -> None:
    train(1.0)
    decide()
    before = ledger.LEDGER.read_bytes()
    with pytest.raises(LpoError):
        ledger.rollback(name)
    assert ledger.LEDGER.read_bytes() == before


def test_weights_that_were_changed_are_not_taken_into_use(decide: Any) -> None:
    first = train(1.0)
    decide()
    train(2.0)
    decide()
    Path("models", first, WEIGHTS).write_bytes(b"another")
    with pytest.raises(LpoError, match="not those that were promoted"):
        ledger.rollback(None)


def test_an_adapter_that_changes_nothing_is_refused(decide: Any) -> None:
    """tune leaves one where no validation was better than the base; a lenient gate must not let it through."""
    train(1.0)
    state = {"unet.a.lora_A.weight": np.ones(3, np.float32), "unet.a.lora_B.weight": np.zeros(3, np.float32)}
    save_file(state, Path("data/tuned") / WEIGHTS)
    write_figures(0.9)
    assert decide()["reason"] == "the adapter changes nothing, so the model is the base"
    save_file(state | {"unet.a.lora_B.weight": np.ones(3, np.float32)}, Path("data/tuned") / WEIGHTS)
    write_figures(0.9)
    assert decide()["promoted"]


def test_old_models_are_collected_and_their_lines_stay(decide: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("params.yaml").read_text()
    assert "  keep: 5" in text
    Path("params.yaml").write_text(text.replace("  keep: 5", "  keep: 1"))
    names = []
    for value in (1.0, 2.0, 3.0):
        names.append(train(value))
        Path("models", f"{names[-1]}.dvc").touch()
        decide()
    assert sorted(path.name for path in Path("models").glob("lpo-*")) == sorted(
        [names[1], f"{names[1]}.dvc", names[2], f"{names[2]}.dvc"]
    )
    capsys.readouterr()
    ledger.show()
    lines = capsys.readouterr().out.splitlines()
    assert [name in line for name, line in zip(names, lines, strict=False)] == [True] * 3
    assert "(its files are not here)" in lines[0] and "(its files are not here)" not in lines[1]
    assert lines[-1] == f"in use: {names[2]}"


def test_the_revision_and_what_differs_from_it_are_recorded(decide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.c")

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-qm", "files")
    assert promote.revision()["commit"] == git("rev-parse", "HEAD")
    assert promote.revision()["changed"] == []  # git does not look at models/ here
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# changed\n")
    assert "params.yaml" in promote.revision()["changed"]


def test_two_at_once_are_told(decide: Any) -> None:
    from lpo.files import alone

    train(1.0)
    with alone(ledger.LOCK, "held by the test"), pytest.raises(LpoError, match="is running"):
        decide()


def test_a_folder_or_a_name_leads_to_a_lora(decide: Any) -> None:
    name = train(1.0)
    decide()
    assert ledger.folder_of(Path("data/tuned")) == Path("data/tuned")
    assert ledger.folder_of(Path(name)) == Path("models", name)
    assert ledger.folder_of(Path("promoted")) == ledger.PROMOTED
    assert ledger.folder_of(Path("absent")) == Path("absent")


def test_a_place_that_fails_does_not_change_the_decision_and_is_tried_again(decide: Any) -> None:
    """The next `lpo promote` tries again, also where it has nothing to decide."""
    text = Path("params.yaml").read_text()
    assert "  folder: null" in text
    Path("params.yaml").write_text(text.replace("  folder: null", "  folder: share"))
    Path("share").write_text("a file in the way")
    name = train(1.0)
    found = decide()
    assert found["promoted"] and promoted() == name
    assert len(found["pending"]) == 1 and found["pending"][0].startswith("folder share: ")
    assert [record["event"] for record in ledger.read_ledger()] == ["promoted", "pending"]
    Path("share").unlink()
    found = decide()
    assert found["reason"] == "it is the promoted model already" and found["pending"] == []
    assert [record["event"] for record in ledger.read_ledger()] == ["promoted", "pending", "published"]
    assert Path("share", name, "README.md").read_text() == "model 1.0"
    second = train(2.0)
    assert decide()["promoted"]
    assert json.loads(Path("share/promoted.json").read_text())["name"] == second
