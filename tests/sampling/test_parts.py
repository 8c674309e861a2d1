"""Work in parts over several processes: the same files as by one, and what goes wrong in a process is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lpo.config import Params, load_params
from lpo.data.schema import read_pairs
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.files import folder_hash
from lpo.resume import Share
from lpo.sampling.parts import Workers, processes
from lpo.stages import dataset, encode, evaluate, score


def small_run(params: Params, shares: int = 0) -> dict[str, str]:
    """Run dataset, score, encode and evaluate, and hash what they write. Unfinished work is set aside afterwards.

    shares: how many make the parts of a stage before the stage itself runs.
    """

    def in_shares(stage: Any) -> None:
        for number in range(shares):
            stage.run(params, Share(number + 1, shares))
        if shares:  # what is left is to join them
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Workers, "map", lambda *a, **k: [pytest.fail("a part is made twice") for _ in a[3]])
                stage.run(params)
        else:
            stage.run(params)

    dataset.run(params)
    in_shares(score)
    Path("data/filtered").mkdir(exist_ok=True)
    read_pairs((Path("data/pairs"), Path("data/collected"))).to_parquet("data/filtered/kept.parquet")
    in_shares(encode)
    in_shares(evaluate)
    os.rename(".checkpoints", f".checkpoints-{os.environ['LPO_PROCESSES']}")
    outputs = ("data/pairs", "data/scores.parquet", "data/latents", "data/evaluation", "metrics/evaluate.json")
    return {name: folder_hash(name) if Path(name).is_dir() else Path(name).read_bytes().hex() for name in outputs}


def test_two_processes_write_the_bytes_of_one(project: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage in parts, on the embedded base, with more batches than processes and a last one that is smaller.

    The second time, three shares make the parts, as three machines would.
    """
    Path("data").mkdir(exist_ok=True)
    for name in ("base", "scorers", "validators"):
        Path("data", name).symlink_to(repository / "data" / name)
    found = load_params()
    params = replace(
        found,
        dataset=replace(
            found.dataset, rendered_pairs=24, sampled_prompts=3, images_per_prompt=2, held_out_rendered_pairs=4,
            held_out_sampled_prompts=1, train_prompts=4, validation_prompts=4, test_prompts=8, num_inference_steps=2,
            batch_size=4,
        ),
        score=replace(found.score, shard_size=30, batch_size=20),
        encode=replace(found.encode, batch_size=8, shard_size=20),
        evaluate=replace(found.evaluate, prompts=7, num_inference_steps=2, batch_size=2, bootstrap=20),
    )  # fmt: skip
    family = load_family(params.model)
    family.add_lora(2, 0)
    torch.manual_seed(1)
    Path("data/tuned").mkdir()
    family.save_lora(Path("data/tuned"), {k: torch.randn_like(v) for k, v in family.lora_state().items()})
    monkeypatch.setenv("LPO_PROCESSES", "1")
    one = small_run(params)
    monkeypatch.setenv("LPO_PROCESSES", "2")
    monkeypatch.setattr("lpo.sampling.parts.START", "fork")  # a spawned process imports for seconds
    assert small_run(params, shares=3) == one
    kept = pd.read_parquet("data/evaluation/results.parquet")
    assert len(kept) == 21 and kept["png"].nunique() > 14


def worker(name: str) -> Callable[[int], str]:
    def work(part: int) -> str:
        if part == 3 and name == "wrong":
            raise LpoError("part 3 is wrong", "here", "correct it")
        if part == 3 and name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{name} {part}"

    return work


def test_results_come_in_order_and_what_goes_wrong_in_a_process_is_told() -> None:
    with Workers(2) as workers:
        assert list(workers.map(worker, ("a",), range(5))) == [f"a {i}" for i in range(5)]
        assert list(workers.map(worker, ("b",), [])) == []
        results = workers.map(worker, ("wrong",), range(9))
        assert [next(results) for _ in range(3)] == ["wrong 0", "wrong 1", "wrong 2"]
        with pytest.raises(LpoError, match="part 3 is wrong") as error:
            next(results)
        assert error.value.remedy == "correct it"
        with pytest.raises(LpoError, match="a process was killed"):
            list(workers.map(worker, ("killed",), range(9)))


def test_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv("LPO_PROCESSES")
    monkeypatch.setattr("lpo.sampling.parts.cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes(cpu, tmp_path) == 6
    assert processes(cpu, tmp_path, "published") == 1  # from the hub, and so perhaps large
    assert processes(torch.device("cuda"), "published") == 8
    monkeypatch.setenv("LPO_PROCESSES", "3")
    assert processes(cpu, "published") == 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes(cpu, tmp_path) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("LPO_PROCESSES", "0")
    with pytest.raises(LpoError, match="LPO_PROCESSES is '0'"):
        processes(cpu)
