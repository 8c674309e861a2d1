"""A repository of the hub is asked for with one request, and its files are looked for by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lpo.config import load_params
from lpo.preflight import files, models
from lpo.preflight.files import missing

FILES = {
    "owner/whole": ["config.json", "model.safetensors", "unet/config.json", "unet/model-00001.safetensors"],
    "owner/half": ["config.json"],
    "MizzenAI/HPSv3": ["HPSv3.safetensors", "README.md"],
    "Qwen/Qwen2-VL-7B-Instruct": ["config.json"],
}


class Hub(ThreadingHTTPServer):
    daemon_threads = True
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.split("?")[0].removeprefix("/api/models/").removeprefix("/api/datasets/")
        found = FILES.get(name)
        body: dict[str, Any] = {"error": "Repository not found"}
        if found is not None:
            siblings = [{"rfilename": file} for file in found]
            body = {"id": name, "sha": "0" * 40, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        data = json.dumps(body).encode()
        self.send_response(200 if found is not None else 404)
        if found is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files.listed.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    files.listed.cache_clear()


def test_one_request_for_each_repository(hub: Hub) -> None:
    for _ in range(2):
        assert list(missing("owner/whole", ["config.json", "*.safetensors|*.bin"], "here")) == []
        assert list(missing("owner/whole/unet", ["config.json", "*.safetensors"], "here")) == []
    assert len(hub.asked) == 1
    (absent,) = missing("owner/half", ["config.json", "*.safetensors|*.bin"], "score.models.clip")
    assert absent.what == "owner/half has no *.safetensors or *.bin" and absent.where == "score.models.clip"
    assert list(missing("owner/whole", ["config.json"], "here", "dataset")) == []
    assert [path.split("?")[0] for path in hub.asked] == [
        "/api/models/owner/whole", "/api/models/owner/half", "/api/datasets/owner/whole",
    ]  # fmt: skip


def test_what_the_hub_does_not_show_is_gone_private_or_gated(hub: Hub) -> None:
    (absent,) = missing("owner/secret", ["config.json"], "model.path")
    assert "gone, private or gated" in absent.what and "hf auth login" in absent.remedy


def test_offline_nothing_is_asked_and_a_constant_is_no_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (absent,) = missing("owner/whole", ["config.json"], "model.path")
    assert "not in the hub's cache" in absent.what and "HF_HUB_OFFLINE=0" in absent.remedy and hub.asked == []


def test_a_snapshot_in_the_cache_needs_no_request(hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache/models--owner--whole/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert list(missing("owner/whole", ["config.json"], "here")) == [] and hub.asked == []
    assert list(missing("owner/whole", ["config.json", "*.safetensors"], "here")) == []
    assert len(hub.asked) == 1  # of what is not there


def test_a_folder_is_looked_at_and_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model/unet").mkdir(parents=True)
    (tmp_path / "model/unet/config.json").touch()
    source = str(tmp_path / "model")
    assert list(missing(source, ["unet/config.json"], "here")) == []
    (absent,) = missing(source, ["unet/config.json", "unet/*.safetensors"], "here")
    assert "has no unet/*.safetensors" in absent.what
    (absent,) = missing(str(tmp_path / "nowhere"), ["config.json"], "here")
    assert "no such model" in absent.what and hub.asked == []


def test_a_judge_names_the_file_that_its_repository_lacks(hub: Hub, repository: Path) -> None:
    params = load_params(repository / "params.yaml")
    asked = replace(params, evaluate=replace(params.evaluate, judges=("hpsv3",)))
    (absent,) = models.judges(asked, ())
    assert absent.what == "Qwen/Qwen2-VL-7B-Instruct has no tokenizer_config.json"
    assert absent.where == "params.yaml: evaluate.judges: hpsv3: Qwen/Qwen2-VL-7B-Instruct"
