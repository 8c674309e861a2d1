"""Two clones score the shares of one stage; they have nothing in common but the remote, and one share is killed.

dvc.yaml has the stage score and, before it, one that only copies pairs, so that little else runs.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from support.service import Service, add_flows, processes, serving
from support.workspace import git, make, run

pytestmark = pytest.mark.prefect
SHARES = 4
PARTS = 16  # of eight pictures
STAGES = """\
stages:
  dataset:
    cmd: cp -r made data/pairs
    deps: [made]
    outs: [data/pairs]
  score:
    cmd: lpo score
    deps: [lpo/stages/score.py, data/pairs, data/scorers]
    params: [model, score, dataset.source, filter.strategy]
    outs: [data/scores.parquet]
    plots: [{metrics/score.json: {cache: false}}]
    meta: {gpu: true, shared: true}
"""


def picture(colour: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.broadcast_to(colour, (32, 32, 3))).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, count: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2 * count, 3), dtype=np.uint8)
    rows = range(count)
    frame = pd.DataFrame(
        {
            "ranking_id": rows, "caption": [f"a cat and {i} dogs" for i in rows],
            "image_0_uid": [f"{i}a" for i in rows], "image_1_uid": [f"{i}b" for i in rows],
            "jpg_0": [picture(c) for c in colours[:count]], "jpg_1": [picture(c) for c in colours[count:]],
            "label_0": 1.0, "label_1": 0.0, "has_label": True, "are_different": True, "num_example_per_prompt": 1,
        }
    )  # fmt: skip
    folder.mkdir()
    frame.to_parquet(folder / "train-00000.parquet", index=False)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The server of a clone with pairs; no worker."""
    folder = make(tmp_path / "clone")
    write_pairs(folder / "made", 4 * PARTS)
    (folder / "dvc.yaml").write_text(STAGES)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["score"] |= {"shard_size": 8, "batch_size": 8}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    add_flows(folder)
    with serving(folder) as found:
        found.stop_worker()
        found.client.patch("v2/concurrency_limits/gpu", json={"limit": SHARES}).raise_for_status()
        yield found


def test_four_shares_on_two_machines_make_the_bytes_of_one_process(service: Service, tmp_path: Path) -> None:
    here, other = service.folder, tmp_path / "other"
    git(tmp_path, "clone", "-q", str(here), str(other))
    with service.worker(here, "cpu", "gpu", limit=3), service.worker(other, "gpu", limit=2):  # the flow runs here too
        run_id = service.start()
        (share,) = service.wait(lambda: processes(other, "bin/lpo score --share")[:1], 0.05)
        service.wait(lambda: list(other.glob(".checkpoints/score/*/part-*.parquet")), 0.01)
        share.parents()[1].kill()  # the share runs below guard.py, and that below the run of Prefect
        service.finish(run_id)
    runs = service.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run_id]}})
    names = [(run["name"], run["state"]["name"]) for run in runs]
    made = [run["state"]["message"] for run in runs if run["state"]["name"] == "Made"]
    assert {(f"score {number}/4", "Made") for number in (1, 2, 3, 4)} | {("score", "Ran")} <= set(names)
    assert len(made) == SHARES and len(set(made)) == 1, "the clones made parts of different work"
    assert [state for _, state in names].count("Crashed") == 1 and len(names) == SHARES + 3  # and dataset
    fewer, most = sorted(len(list((folder / made[0]).glob("part-*"))) for folder in (here, other))
    assert 0 < fewer < PARTS == most, "one clone has its own parts, and the one that joined them has all"
    assert not [path for path in (tmp_path / "remote/parts").rglob("*") if path.is_file()]
    scores = (here / "data/scores.parquet").read_bytes()
    shutil.rmtree(here / ".checkpoints")
    run(here, "lpo", "score")
    assert (here / "data/scores.parquet").read_bytes() == scores
