"""wandb and DVCLive behind one small class, for watching a run. Nothing that the project makes depends on it.

    with Tracker("reward", params.tracking, asdict(params)) as tracker:
        tracker.show("reward/picture", pixels)  # with the next step that is logged
        tracker.log(step, {"reward/loss": 0.69})

DVCLive writes `dvclive/RUN_NAME/`, wandb writes `.wandb/` (offline, unless params.tracking.wandb says else); neither
touches git. A tracker that raises is warned of once and dropped, and the run goes on. The global random states of
Python, NumPy and torch are as before after every call, so a run is the same with and without its trackers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from lpo.config import Tracking


class _Sink(NamedTuple):
    log: Callable[[int, dict[str, float], dict[str, np.ndarray]], None]
    close: Callable[[bool], None]  # whether the run failed


class Tracker:
    """One run, logged while the `with` block lasts; outside of it `log` does nothing.

    Args:
        run_name: the stage, such as "reward".
        settings: the section `tracking` of params.yaml.
        config: what wandb stores with the run, such as all parameters.
    """

    def __init__(self, run_name: str, settings: Tracking, config: dict[str, Any]) -> None:
        self._run_name, self._settings, self._config = run_name, settings, config
        self._sinks: dict[str, _Sink] = {}
        self._pictures: dict[str, np.ndarray] = {}

    def __enter__(self) -> Tracker:
        self._try("dvclive", lambda: self._sinks.update(dvclive=_dvclive(self._run_name)))
        if self._settings.wandb != "disabled":
            run = (self._run_name, self._settings, self._config)
            self._try("wandb", lambda: self._sinks.update(wandb=_wandb(*run)))
        return self

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record plain numbers at a step, and the pictures shown since the last; steps only grow."""
        pictures, self._pictures = self._pictures, {}
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.log, step, metrics, pictures)

    def show(self, name: str, picture: np.ndarray) -> None:
        """Record a picture, (H, W, 3) uint8, at the step that is logged next."""
        self._pictures[name] = picture

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.close, kind is not None)
        self._sinks.clear()

    def _try(self, name: str, call: Callable[..., None], *args: Any) -> None:
        with _random_states_kept():
            try:
                call(*args)
            except Exception as error:  # whatever it is, it is no reason to lose a training run
                self._sinks.pop(name, None)
                print(f"warning: {name} failed and records no more of this run: {error}", file=sys.stderr)


def _dvclive(run_name: str) -> _Sink:
    from dvclive import Live

    live = Live(dir=f"dvclive/{run_name}", save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)

    def log(step: int, metrics: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        live.step = step
        for name, value in metrics.items():
            live.log_metric(name, value)
        for name, picture in pictures.items():
            live.log_image(f"{name}/{step:06d}.png", picture)
        live.make_summary()

    return _Sink(log, lambda failed: live.end())


def _wandb(run_name: str, settings: Tracking, config: dict[str, Any]) -> _Sink:
    import wandb

    # Absolute: wandb's service outlives a run and reads a relative path from the folder in which it was started.
    folder = Path(".wandb").resolve()
    folder.mkdir(exist_ok=True)
    run = wandb.init(
        project=settings.project,
        name=run_name,
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
