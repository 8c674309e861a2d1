"""A hub on 127.0.0.1 for one dataset: lists it, serves its files with ranges, and can stall in the middle of one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.folder = repository, folder
        self.stall_after: int | None = None  # bytes of a file; then it says nothing more
        self.stalled = threading.Event()
        self.requests: list[tuple[str, str]] = []  # path, range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            name = path.relative_to(self.folder).as_posix()
            siblings.append({"rfilename": name, "size": len(data), "lfs": lfs if path.suffix != ".json" else None})
        return {
            "id": self.repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0,
            "likes": 0, "disabled": False, "gated": False,
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((path, self.headers.get("Range", "")))
        if path.startswith(f"/api/datasets/{self.server.repository}"):
            self._send(200, json.dumps(self.server.listing()).encode())
            return
        prefix = f"/datasets/{self.server.repository}/resolve/{COMMIT}/"
        file = self.server.folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            self._send(404, b"")
            return
        data, start = file.read_bytes(), 0
        if found := self.headers.get("Range"):
            start = int(found.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.server.stall_after is not None:
            self.wfile.write(data[start : start + self.server.stall_after])
            self.wfile.flush()
            self.server.stalled.set()
            self.rfile.read(1)  # until the other side is gone
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(repository: str, folder: Path) -> Iterator[Hub]:
    hub = Hub(repository, folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
