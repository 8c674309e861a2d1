"""Promoted models on their way out: what is sent, that failures are tried again, and that nothing is doubled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from support.registries import Hub, Mlflow, running

from lpo.config import Params, check_params, load_params
from lpo.config.reader import parse_yaml
from lpo.errors import ConfigError, LpoError
from lpo.publish.package import PACKAGES, build
from lpo.publish.places import publish
from lpo.registry import ledger

WEIGHTS = ledger.WEIGHTS
DATA = {"data/pairs": "11.dir", "data/tuned": "22.dir"}
FILES = {WEIGHTS, "README.md", "evaluation.json", "lineage.json", "reward/config.json", "reward/unet/model.safetensors"}


def promote(value: float) -> str:
    """What `lpo promote` leaves of a model: its files, its line of the ledger, its weights in use."""
    source = Path("made")
    source.mkdir(exist_ok=True)
    save_file({"a": np.full(3, value, np.float32)}, source / WEIGHTS)
    (source / "README.md").write_text("a card without figures")
    name = ledger.name_of(source)
    ledger.keep_files(source, name)
    made = {"data": DATA, "params": {}, "revision": {"commit": "c0ffee", "changed": ["a", "b"]}}
    metrics = {"win_rate": {"overall": {"value": 0.5 + value / 100, "prompts": 9}}, "judge": "emoji"}
    ledger.append(
        {"event": "promoted", "name": name, "reason": "the gate holds", "against": ledger.in_use(ledger.read_ledger()),
         "metrics": metrics, "made_from": made}
    )  # fmt: skip
    ledger.settle(ledger.read_ledger())
    return name


@pytest.fixture
def send(project: Path) -> Callable[..., list[str]]:
    """Publish the model in use, with a card and a reward, to the places given."""
    Path("reward/unet").mkdir(parents=True)
    Path("reward/config.json").write_text("{}")
    save_file({"w": np.ones(2, np.float32)}, "reward/unet/model.safetensors")
    Path("CARD.md").write_text("---\nbase_model: a/b\n---\n\n# The card with figures\n")

    def call(**places: str) -> list[str]:
        params = load_params()
        return publish(replace(params, publish=replace(params.publish, **places)), Path("CARD.md"), Path("reward"))

    return call


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub("team/model")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server here stores files by HTTP
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with running(server):
        yield server


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    server = Mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with running(server):
        yield server


def last() -> tuple[str, str, str]:
    record = ledger.read_ledger()[-1]
    return record["event"], record["name"], record["reason"]


def test_a_hub_gets_one_commit_and_one_tag_a_model(send: Any, hub: Hub) -> None:
    first = promote(1)
    assert send(hub="team/model") == []
    assert set(hub.files) == FILES and hub.private is True
    assert "Bearer hf_test" in hub.authorized
    assert hub.files["README.md"] == Path("CARD.md").read_bytes()
    assert hub.files[WEIGHTS] == (ledger.PROMOTED / WEIGHTS).read_bytes()
    assert json.loads(hub.files["evaluation.json"])["win_rate"]["overall"]["value"] == 0.51
    lineage = json.loads(hub.files["lineage.json"])
    assert lineage["made_from"]["data"] == DATA and lineage["made_from"]["revision"]["commit"] == "c0ffee"
    assert last() == ("published", first, "to hub team/model") and not any(PACKAGES.iterdir())
    before = len(hub.asked)
    assert send(hub="team/model") == [] and len(hub.asked) == before  # it is there
    hub.files |= {"LICENSE": b"ours", "reward/old.json": b"{}"}
    second = promote(2)
    assert send(hub="team/model") == []
    assert set(hub.files) == FILES | {"LICENSE"}  # what others put there stays, an old reward goes
    assert [message.split(":")[0] for message, _ in hub.commits] == [first, second]
    assert hub.tags == {first: f"{1:040x}", second: f"{2:040x}"}


@pytest.mark.parametrize("step", ["repos/create", "preupload", "lfs/objects", "/commit/", "/tag/"])
def test_a_failed_upload_is_pending_and_is_sent_again_as_it_was(
    send: Any, hub: Hub, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries of the hub's client
    name = promote(1)
    hub.fail = step
    assert send(hub="team/model") == ["hub team/model"]
    event, model, reason = last()
    assert (event, model) == ("pending", name) and "500" in reason and "hf_test" not in reason
    count = len(ledger.read_ledger())
    assert send(hub="team/model") == ["hub team/model"]
    assert len(ledger.read_ledger()) == count  # the same failure is one line
    save_file({"w": np.zeros(2, np.float32)}, "reward/unet/model.safetensors")  # tomorrow's reward
    hub.fail = None
    assert send(hub="team/model") == []
    assert last() == ("published", name, "to hub team/model") and set(hub.tags) == {name}
    Path("sent.safetensors").write_bytes(hub.files["reward/unet/model.safetensors"])
    assert load_file("sent.safetensors")["w"].tolist() == [1, 1]


def test_mlflow_gets_a_version_with_lineage_and_the_alias_follows_the_model_in_use(send: Any, mlflow: Mlflow) -> None:
    first = promote(1)
    assert send(mlflow="lpo") == []
    (version,) = mlflow.models["lpo"]
    run = mlflow.runs[version["run_id"]]
    assert run["status"] == "FINISHED" and mlflow.authorized == {"Bearer secret"}
    prefix = f"1/{version['run_id']}/artifacts/"
    assert {path.removeprefix(prefix) for path in mlflow.artifacts} == FILES
    assert mlflow.artifacts[prefix + WEIGHTS] == (ledger.PROMOTED / WEIGHTS).read_bytes()
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert (tags["lpo.model"], tags["git.commit"], tags["data.data/pairs"]) == (first, "c0ffee", "11.dir")
    assert run["metrics"] == {"win_rate.overall.value": 0.51, "win_rate.overall.prompts": 9}
    assert ledger.read_ledger()[-1]["where"] == f"{mlflow.url}/#/models/lpo/versions/1"
    promote(2)
    assert send(mlflow="lpo") == [] and mlflow.aliases == {("lpo", "promoted"): "2"}
    ledger.rollback(first)
    assert send(mlflow="lpo") == [] and mlflow.aliases == {("lpo", "promoted"): "1"}
    assert len(mlflow.models["lpo"]) == len(mlflow.runs) == 2  # a version that is there is named, not made again


@pytest.mark.parametrize(
    "step", ["registered-models/create", "runs/create", "mlflow-artifacts", "versions/create", "alias"]
)
def test_a_push_to_mlflow_that_failed_ends_as_one_version(send: Any, mlflow: Mlflow, step: str) -> None:
    promote(1)
    mlflow.fail = step
    assert send(mlflow="lpo") == ["mlflow lpo"]
    assert last()[0] == "pending" and "500" in last()[2] and "secret" not in last()[2]
    mlflow.fail = None
    assert send(mlflow="lpo") == []
    assert len(mlflow.models["lpo"]) == 1 and mlflow.aliases == {("lpo", "promoted"): "1"}
    assert [run["status"] for run in mlflow.runs.values()].count("FINISHED") == 1
    assert "RUNNING" not in [run["status"] for run in mlflow.runs.values()]


def test_an_mlflow_server_that_takes_no_artifacts_or_is_not_there_says_what_to_do(
    send: Any, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    mlflow.scheme = "s3"
    assert send(mlflow="lpo") and "--serve-artifacts" in last()[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:password@127.0.0.1:9")
    assert send(mlflow="lpo") and "cannot be reached" in last()[2] and "password" not in last()[2]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send(mlflow="lpo") and "MLFLOW_TRACKING_URI=http" in last()[2]


def test_places_fail_one_by_one_and_models_tells_where_each_is(
    send: Any, mlflow: Mlflow, capsys: pytest.CaptureFixture[str]
) -> None:
    first = promote(1)
    Path("share").write_text("a file in the way")
    assert send(mlflow="lpo", folder="share") == ["folder share"]
    capsys.readouterr()
    ledger.show()
    out = capsys.readouterr().out
    assert f"mlflow lpo: {first} at {mlflow.url}" in out
    assert f"folder share: {first} was not sent; `lpo models publish` tries again" in out
    Path("share").unlink()
    second = promote(2)
    assert send(mlflow="lpo", folder="share") == []
    assert json.loads(Path("share/promoted.json").read_text())["name"] == second
    assert {path.relative_to(f"share/{second}").as_posix() for path in Path("share", second).rglob("*.*")} == FILES
    ledger.rollback(first)
    capsys.readouterr()
    ledger.show()
    assert f"folder share: {second} at share/{second}; `lpo models publish` sends {first}" in capsys.readouterr().out
    assert send(folder="share") == []
    assert json.loads(Path("share/promoted.json").read_text())["name"] == first
    Path("share", second, WEIGHTS).write_bytes(b"others")
    ledger.rollback(second)
    assert send(folder="share") == ["folder share"] and "other weights are there" in last()[2]
    ledger.rollback("base")
    assert send(folder="share") == []


def test_wandb_gets_an_artifact_that_is_linked_with_the_alias(send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's own Artifact, and a run that stands for the server."""
    import wandb

    calls: list[tuple[str, Any]] = []

    class Run:
        def log_artifact(self, artifact: Any) -> Any:
            calls.append(("log", {name for name in artifact.manifest.entries}))
            calls.append(("metadata", artifact.metadata))
            return SimpleNamespace(wait=lambda timeout: calls.append(("wait", timeout)))

        def link_artifact(self, artifact: Any, target: str, aliases: list[str]) -> None:
            calls.append(("link", (target, aliases)))
            if target == "broken":
                raise RuntimeError("no such registry")

        def finish(self, exit_code: int = 0) -> None:
            calls.append(("finish", exit_code))

    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(("init", options["mode"])) or Run())
    name = promote(1)
    assert send(wandb="wandb-registry-model/lpo") == []
    found = dict(calls)
    assert found["init"] == "online" and found["log"] == FILES and found["finish"] == 0
    assert found["link"] == ("wandb-registry-model/lpo", ["promoted", name])
    assert found["metadata"]["lineage"]["data.data/pairs"] == "11.dir"
    assert send(wandb="broken") == ["wandb broken"]
    assert dict(calls)["finish"] == 1 and last()[2] == "wandb broken: RuntimeError: no such registry"


@pytest.mark.parametrize(
    ("file", "content"), [("reward/optimizer.pt", b"x"), ("reward/evil.safetensors", b"\x80\x04N.")]
)
def test_nothing_but_safetensors_and_text_is_sent(send: Any, file: str, content: bytes) -> None:
    promote(1)
    Path(file).write_bytes(content)
    assert send(folder="share") == ["folder share"]
    assert f"neither safetensors nor text: {file}" in last()[2] and not Path("share").exists()
    with pytest.raises(LpoError, match="neither safetensors"):
        build(ledger.read_ledger()[0], None, Path("reward"))


def test_the_parameters_of_a_place_are_checked(project: Path) -> None:
    def check(**sections: dict[str, str]) -> Params:
        tree = parse_yaml(Path("params.yaml").read_text(), "params.yaml")
        for name, values in sections.items():
            tree[name] |= values
        return check_params(tree, "params.yaml")

    with pytest.raises(ConfigError, match="publish.hub: must be OWNER/NAME"):
        check(publish={"hub": "model"})
    with pytest.raises(ConfigError, match="tracking.wandb: must be online"):
        check(publish={"wandb": "a/b"}, tracking={"wandb": "offline"})
    assert check(publish={"wandb": "a/b"}, tracking={"wandb": "online"}).publish.wandb == "a/b"
