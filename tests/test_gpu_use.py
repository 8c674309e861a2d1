"""What GPUs did: hours by hand, energy of a driver that is made up, and what is not told."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lpo.timings import gpus
from lpo.timings.gpus import Use, cost, measured, read, total
from tasks.gpus import read_use, with_use


class NVMLError(Exception):
    pass


def driver(monkeypatch: pytest.MonkeyPatch, **counters: list[int]) -> None:
    """A driver whose GPUs tell these energies, one after the other; in mJ, as NVML does."""

    def energy(name: str) -> int:
        if name not in counters:
            raise NVMLError("not supported")
        return counters[name].pop(0)

    made: Any = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetHandleByIndex=lambda number: f"of_{number}", nvmlDeviceGetTotalEnergyConsumption=energy,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", made)


def test_energy_is_the_difference_of_the_drivers_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, a=[1_000_000, 4_000_000], of_1=[10, 2_000_010])
    with measured(["a", "1"]) as meter:
        pass
    assert meter.use is not None and (meter.use.gpus, meter.use.joules) == (2, 5000.0)
    assert 0 <= meter.use.seconds < 60


@pytest.mark.parametrize("counters", [{}, {"a": [5, 3]}, {"a": [1, 2]}], ids=["none", "restarted", "of one GPU alone"])
def test_energy_is_unknown_where_the_driver_does_not_tell_it(
    monkeypatch: pytest.MonkeyPatch, counters: dict[str, list[int]]
) -> None:
    driver(monkeypatch, **counters)
    with measured(["a"] if counters.get("a") == [5, 3] else ["a", "b"]) as meter:
        pass
    assert meter.use is not None and meter.use.joules is None


def test_without_a_gpu_nothing_is_measured() -> None:
    with measured([]) as meter:
        pass
    assert meter.use is None


def test_hours_energy_and_cost_by_hand() -> None:
    four, one = Use(4, 1800.0, 3.6e6), Use(1, 3600.0, 1.8e6)
    assert four.hours == 2.0
    assert total([four, None, one]) == (3.0, 1.5)
    assert total([four, Use(1, 3600.0)]) == (3.0, None), "the energy of one is unknown"
    assert total([]) == (0, None)
    assert cost(3.0, 1.5, 2.5) == "3.00 GPU-hours, 1.50 kWh, cost 7.50"
    assert cost(3.0, None, None) == "3.00 GPU-hours"


def test_a_use_is_read_back_and_a_broken_one_is_none() -> None:
    for use in (Use(4, 120.5, 3.5), Use(1, 2.0)):
        assert read(dataclasses.asdict(use)) == use
        assert read_use(with_use("vm:/a clone", use)) == ("vm:/a clone", use)
    assert read_use(with_use("vm:/a clone", None)) == ("vm:/a clone", None)
    for broken in (None, {}, 3, {"gpus": "many", "seconds": 1, "joules": None}):
        assert read(broken) is None


@pytest.mark.parametrize(
    ("stage", "device", "cuda", "found"),
    [
        ("tune", "auto", True, ["GPU-a"]),
        ("tune", "cuda", True, ["GPU-a"]),
        ("tune", "auto", False, []),  # a torch for CPUs on a machine with a GPU
        ("tune", "cpu", True, []),
        ("filter", "auto", True, []),
    ],
)
def test_a_stage_counts_the_gpus_that_it_computes_on(
    stage: str, device: str, cuda: bool, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(gpus, "visible", lambda: ["GPU-a"])
    assert gpus.of_stage(stage, device) == found


def test_the_stages_that_use_gpus_are_those_of_the_pipeline(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    found = {name for name, stage in stages.items() if stage.get("meta", {}).get("gpu")}
    assert found | {"spm"} == gpus.STAGES
