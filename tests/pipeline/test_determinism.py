"""Two runs from scratch on one machine give the same bytes."""

from __future__ import annotations

from pathlib import Path

from workspace import contents, hashes, outs, stages


def test_two_runs_from_scratch_make_equal_artifacts(runs: tuple[Path, Path]) -> None:
    first, second = map(hashes, runs)
    assert sorted(first) == sorted(name for stage in stages(runs[0]).values() for name in outs(stage))
    assert first == second


def test_two_runs_from_scratch_write_equal_metrics_plots_and_lock_files(runs: tuple[Path, Path]) -> None:
    first, second = (contents(folder, "metrics", "plots") for folder in runs)
    assert first == second
    assert (runs[0] / "dvc.lock").read_bytes() == (runs[1] / "dvc.lock").read_bytes()
