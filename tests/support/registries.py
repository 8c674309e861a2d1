"""A hub and an MLflow server on 127.0.0.1 that take what is published, remember it, and fail when told to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Registry(ThreadingHTTPServer):
    """fail: requests whose path holds this text are answered with 500, without a trace."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.fail: str | None = None
        self.asked: list[str] = []
        self.authorized: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        body = self.body()
        path = unquote(parts.path)
        self.server.asked.append(f"{self.command} {path}")
        self.server.authorized.add(self.headers.get("authorization"))
        if self.server.fail and self.server.fail in path:
            status, found = 500, {"message": "out of order", "error": "out of order"}
        else:
            status, found = self.answer(self.command, path, parse_qs(parts.query), body)
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = handle_any

    def log_message(self, *args: Any) -> None:
        pass


class Hub(Registry):
    """One repository. files: of main. commits: (message, files after it). tags: name -> commit."""

    def __init__(self, repository: str) -> None:
        super().__init__(HubHandler)
        self.repository = repository
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.tags: dict[str, str] = {}

    @property
    def head(self) -> str:
        return f"{len(self.commits):040x}"


class HubHandler(Handler):
    server: Hub

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        hub = self.server
        api = f"/api/models/{hub.repository}"
        if path == "/api/repos/create":
            exists, sent = hub.private is not None, json.loads(body)
            hub.private = bool(sent.get("private")) or sent.get("visibility") == "private"
            return (409 if exists else 200), {"url": f"{hub.url}/{hub.repository}", "error": "exists"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith(f"{api}/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "shouldIgnore": False} | self.known(name) for name in names]}
        if path == f"/{hub.repository}.git/info/lfs/objects/batch":
            asked = json.loads(body)["objects"]
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                for o in asked
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            return 200, {}
        if path.startswith(f"{api}/tree/"):
            rows = [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40} for p, b in hub.files.items()]
            return 200, rows
        if path.startswith(f"{api}/commit/"):
            return 200, self.commit(body)
        if path.startswith(f"{api}/tag/"):
            tag = json.loads(body)["tag"]
            known = tag in hub.tags
            hub.tags.setdefault(tag, path.rpartition("/")[2])
            return (409 if known else 200), {}
        if path.startswith(api):
            return 200, {"id": hub.repository, "sha": hub.head, "siblings": [], "private": True}
        return 404, {"error": f"not found: {path}"}

    def known(self, name: str) -> dict[str, Any]:
        """How a file is to be sent, and the hash of what is there, by which a client leaves out what did not change."""
        large, data = name.endswith(".safetensors"), self.server.files.get(name)
        found: dict[str, Any] = {"uploadMode": "lfs" if large else "regular"}
        if data is not None:
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            found["oid"] = hashlib.sha256(data).hexdigest() if large else blob
        return found

    def commit(self, body: bytes) -> dict[str, Any]:
        hub = self.server
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        files = dict(hub.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        hub.files = files
        hub.commits.append((lines[0]["value"]["summary"], files))
        address = f"{hub.url}/{hub.repository}"
        return {"success": True, "commitOid": hub.head, "commitUrl": f"{address}/commit/{hub.head}"}


class Mlflow(Registry):
    """The part of MLflow's REST API that a push needs, checked against MLflow 3.17."""

    def __init__(self) -> None:
        super().__init__(MlflowHandler)
        self.models: dict[str, list[dict[str, Any]]] = {}  # versions of each registered model
        self.aliases: dict[tuple[str, str], str] = {}
        self.experiments: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, bytes] = {}
        self.scheme = "mlflow-artifacts"


class MlflowHandler(Handler):
    server: Mlflow

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        server = self.server
        if path.startswith("/api/2.0/mlflow-artifacts/artifacts/") and method == "PUT":
            server.artifacts[path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/")] = body
            return 200, {}
        name = path.removeprefix("/api/2.0/mlflow/")
        sent = json.loads(body) if body else {}
        match name:
            case "registered-models/create":
                return self.create(server.models, sent["name"], [])
            case "experiments/create":
                if sent["name"] in server.experiments:
                    return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"}
                server.experiments.append(sent["name"])
                return 200, {"experiment_id": str(len(server.experiments))}
            case "experiments/get-by-name":
                number = server.experiments.index(query["experiment_name"][0]) + 1
                return 200, {"experiment": {"experiment_id": str(number)}}
            case "runs/create":
                run_id = f"run{len(server.runs)}"
                uri = f"{server.scheme}:/{sent['experiment_id']}/{run_id}/artifacts"
                server.runs[run_id] = sent | {"status": "RUNNING", "metrics": {}}
                return 200, {"run": {"info": {"run_id": run_id, "artifact_uri": uri}}}
            case "runs/log-batch":
                assert len(sent["metrics"]) <= 1000
                server.runs[sent["run_id"]]["metrics"] |= {row["key"]: row["value"] for row in sent["metrics"]}
                return 200, {}
            case "runs/update":
                server.runs[sent["run_id"]]["status"] = sent["status"]
                return 200, {}
            case "model-versions/create":
                versions = server.models[sent["name"]]
                versions.append(sent | {"version": str(len(versions) + 1), "status": "READY"})
                return 200, {"model_version": versions[-1]}
            case "model-versions/search":
                name = query["filter"][0].removeprefix("name='").removesuffix("'")
                start = int(query.get("page_token", ["0"])[0])  # pages of one, so that paging is tested
                found = server.models[name][start : start + 1]
                more = {"next_page_token": str(start + 1)} if len(server.models[name]) > start + 1 else {}
                return 200, {"model_versions": found} | more
            case "registered-models/alias":
                server.aliases[sent["name"], sent["alias"]] = sent["version"]
                return 200, {}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}

    def create(self, table: dict[str, Any], name: str, value: Any) -> tuple[int, Any]:
        if name in table:
            return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"}
        table[name] = value
        return 200, {}


@contextmanager
def running(registry: Registry) -> Iterator[None]:
    thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        registry.shutdown()
        registry.server_close()
        thread.join()
