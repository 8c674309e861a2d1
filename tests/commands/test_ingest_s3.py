"""An inbox on S3: the few requests that a listing, a download, a copy and a removal are, on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import fsspec
import pytest
from support.new_pairs import pairs
from test_ingest import prepare

from lpo.commands import ingest
from lpo.config import load_params

DATE = "2026-01-01T00:00:00.000Z"


class Bucket(BaseHTTPRequestHandler):
    """One bucket, `bucket`, as a mapping from keys to bytes (S3 API: ListObjectsV2, Get, Head, Copy, Delete)."""

    objects: dict[str, bytes] = {}

    def answer(self, code: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")

    def do_GET(self) -> None:
        if self.key:
            known = self.key in self.objects
            return self.answer(200 if known else 404, self.objects.get(self.key, b""))
        query = parse_qs(urlsplit(self.path).query)
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        rest = {key: key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)}
        folders = sorted({prefix + tail.split("/")[0] + "/" for tail in rest.values() if delimiter and "/" in tail})
        files = [key for key, tail in rest.items() if not (delimiter and "/" in tail)]
        shown = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{DATE}</LastModified><ETag>0</ETag>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in files
        )
        shown += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        count = f"<KeyCount>{len(files) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
        self.answer(200, f"<ListBucketResult>{count}{shown}</ListBucketResult>".encode())

    def do_HEAD(self) -> None:
        found = self.objects.get(self.key)
        self.answer(404 if found is None else 200, length=len(found or b""))

    def do_PUT(self) -> None:
        source = unquote(self.headers["x-amz-copy-source"]).removeprefix("/").removeprefix("bucket/")
        self.objects[self.key] = self.objects[source]
        body = f"<CopyObjectResult><LastModified>{DATE}</LastModified><ETag>0</ETag></CopyObjectResult>"
        self.answer(200, body.encode())

    def do_DELETE(self) -> None:
        self.objects.pop(self.key, None)
        self.answer(204)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def store(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    prepare(project)
    Bucket.objects = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("source: data/inbox", "source: s3://bucket/new/pairs"))
    yield Bucket.objects
    fsspec.filesystem("s3").clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_objects_are_taken_in_and_moved(store: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    def take() -> tuple[int, int, int]:
        ingest.run(load_params())
        found = json.loads(capsys.readouterr().out)
        return found["new_pairs"], found["quarantined"], found["duplicates"]

    frame = pairs(4).assign(caption=[f"a {i}" for i in range(4)])
    assert take() == (0, 0, 0)  # a prefix under which there is nothing
    store["new/pairs/a [1]*.parquet"] = frame.to_parquet(index=False)
    store["new/pairs/b.parquet"] = b"no parquet"
    store["new/pairs/../c.parquet"] = store["new/other.parquet"] = b"elsewhere"
    assert take() == (4, 1, 0)
    folders = sorted(key.rsplit("/", 1)[0] for key in store)
    assert folders == ["new", "new/pairs/..", "new/pairs/refused", "new/pairs/taken"]
    assert any(key.endswith("-a__1__.parquet") for key in store)
    assert "new/pairs/../c.parquet" in store and "new/other.parquet" in store
    store["new/pairs/again.parquet"] = frame.to_parquet(index=False)
    assert take() == (0, 0, 4)
