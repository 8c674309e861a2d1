from __future__ import annotations

from pathlib import Path

import pytest

from lpo.config import Params, load_params


@pytest.fixture
def world(project: Path, repository: Path) -> Path:
    """A clone before its first run: parameters, presets, and the models of the emoji world."""
    (project / "data").mkdir()
    for name in ("base", "scorers", "validators"):
        (project / "data" / name).symlink_to(repository / "data" / name)
    return project


@pytest.fixture
def params(world: Path) -> Params:
    return load_params()
