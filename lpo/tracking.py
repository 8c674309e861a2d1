"""wandb and DVCLive behind one small class, for watching a training. No artifact depends on it.

    with Tracker("reward", params.tracking, asdict(params), folder) as tracker:
        tracker.show("reward/picture", pixels)  # with the next step that is logged
        tracker.log(step, {"reward/loss": 0.69})

DVCLive writes `dvclive/RUN_NAME/`. wandb writes `.wandb/`, offline unless params.tracking.wandb says otherwise. Neither
touches git. A tracker that raises is dropped with one warning, and the training continues. The global random states of
Python, NumPy and torch are the same before and after every call, so trackers do not change a training.

A resumed training continues its curves. `tracking.json` beside its checkpoints holds the id of the run and the last
step that was logged completely. Steps that are repeated after the last checkpoint are not logged a second time.
"""

from __future__ import annotations

import json
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from lpo.config import Tracking
from lpo.files import write_json, write_text


class _Sink(NamedTuple):
    log: Callable[[int, dict[str, float], dict[str, np.ndarray]], None]
    close: Callable[[bool], None]  # whether the run failed


class Tracker:
    """One run, logged while the `with` block lasts; outside of it `log` does nothing.

    Args:
        run_name: the stage, such as "reward".
        settings: the section `tracking` of params.yaml.
        config: what wandb stores with the run, such as all parameters.
        folder: the checkpoints of this training. A later training with the same folder continues the run. Without it
            the run is never continued.
    """

    def __init__(self, run_name: str, settings: Tracking, config: dict[str, Any], folder: Path | None = None) -> None:
        self._run_name, self._settings, self._config = run_name, settings, config
        self._state = folder / "tracking.json" if folder else None
        self._sinks: dict[str, _Sink] = {}
        self._pictures: dict[str, np.ndarray] = {}

    def __enter__(self) -> Tracker:
        self._id, self._logged = _read_state(self._state)
        self._step = self._logged
        self._write_state()
        self._try("dvclive", lambda: self._sinks.update(dvclive=_dvclive(self._run_name, self._id, self._logged)))
        if self._settings.wandb != "disabled":
            run = (self._run_name, self._settings, self._config, self._id)
            self._try("wandb", lambda: self._sinks.update(wandb=_wandb(*run)))
        return self

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record plain numbers at a step, and the pictures shown since the last call. Steps never decrease."""
        pictures, self._pictures = self._pictures, {}
        if not self._sinks or step <= self._logged:
            return
        if step > self._step:  # so the step before is complete
            self._write_state()
            self._step = step
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.log, step, metrics, pictures)

    def show(self, name: str, picture: np.ndarray) -> None:
        """Record a picture, (H, W, 3) uint8, with the next step that is logged."""
        self._pictures[name] = picture

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.close, kind is not None)
        if self._sinks and kind is None:  # an interrupted step may be incomplete, and is logged again
            self._write_state()
        self._sinks.clear()

    def _write_state(self) -> None:
        if self._state:
            self._try("tracking.json", write_json, self._state, {"id": self._id, "step": self._step})

    def _try(self, name: str, call: Callable[..., None], *args: Any) -> None:
        with _random_states_kept():
            try:
                call(*args)
            except Exception as error:  # no failure of a tracker is a reason to lose a training
                self._sinks.pop(name, None)
                print(f"warning: {name} failed and no longer records this run: {error}", file=sys.stderr)


def _read_state(file: Path | None) -> tuple[str, int]:
    """The id of the run and the last step that was logged completely: of an earlier training, or new ones."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
        return str(found["id"]), int(found["step"])
    except (OSError, ValueError, KeyError):
        return uuid.uuid4().hex, -1


def _dvclive(run_name: str, run_id: str, logged: int) -> _Sink:
    from dvclive import Live

    folder = Path("dvclive", run_name)
    note = folder / "run.txt"
    same = note.exists() and note.read_text(encoding="utf-8") == run_id
    if same:
        for table in folder.glob("plots/metrics/**/*.tsv"):
            header, *rows = table.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if int(row.split("\t")[0]) <= logged]
            write_text(table, "\n".join([header, *kept]) + "\n")
    live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False, resume=same)
    write_text(note, run_id)

    def log(step: int, metrics: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        live.step = step
        for name, value in metrics.items():
            live.log_metric(name, value)
        for name, picture in pictures.items():
            live.log_image(f"{name}/{step:06d}.png", picture)
        live.make_summary()

    return _Sink(log, lambda failed: live.end())


def _wandb(run_name: str, settings: Tracking, config: dict[str, Any], run_id: str) -> _Sink:
    import wandb

    # Absolute, because wandb's service outlives a run and resolves relative paths in the folder where it was started.
    folder = Path(".wandb").resolve()
    folder.mkdir(exist_ok=True)
    run = wandb.init(
        project=settings.project,
        name=run_name,
        id=run_id,
        resume="allow" if settings.wandb == "online" else None,  # offline, `wandb sync` joins runs of one id
        mode=settings.wandb,
        dir=folder,
        config=config,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )

    def log(step: int, metrics: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        images = {name: wandb.Image(picture) for name, picture in pictures.items()}
        run.log({**metrics, **images}, step=step)

    return _Sink(log, lambda failed: run.finish(exit_code=int(failed)))


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
