"""doctor's count of every moment of every stage against the stages' own code, run on the meta device at real sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import counts
from lpo.config.presets import with_preset
from lpo.doctor.stages import needs

STAGES = ("score", "encode", "reward", "tune", "evaluate")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stages"), [("sd15", STAGES), ("spo-sd15", ("reward",)), ("sdxl", ("reward",))])
def test_a_stage_takes_what_doctor_says(repository: Path, name: str, stages: tuple[str, ...]) -> None:
    """Weights, gradients, Adam, activations, scorers, judges: the largest moment within 5 %, and none below."""
    params = with_preset(name, repository / "params.yaml")
    counted = counts(params, stages)
    said = {need.stage: need for need in needs(params) if need.stage in {stage for stage, _ in counted}}
    for (stage, moment), size in counted.items():
        assert size <= sum(said[stage].moments[moment]), (stage, moment)
    for stage, need in said.items():
        assert need.total <= 1.05 * max(size for (own, _), size in counted.items() if own == stage), stage
