"""The pipeline is run from nothing twice, both runs at once; all tests here look at what they left.

Of several pytest processes (`make test` starts two) the first that needs these runs makes them for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Service, add_flows, serving
from workspace import commit, finish, make, started

from tasks.workspace import locked


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two workspaces with equal files, each after a `dvc repro` from nothing, results committed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pipeline"
    with locked(folder / "lock", "pytest", lambda holder: None):
        if not (folder / "done").exists():
            first, second = make(folder / "first"), make(folder / "second")
            with started(first, "dvc", "repro") as one, started(second, "dvc", "repro") as other:
                finish(first, one)
                finish(second, other)
            commit(first)
            commit(second)
            (folder / "done").touch()
    return folder / "first", folder / "second"


@pytest.fixture(scope="session")
def finished(runs: tuple[Path, Path]) -> Path:
    """A workspace after `dvc repro`. Tests leave it as it is."""
    return runs[0]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A clone that nothing was run in yet, its Prefect server and its worker."""
    folder = make(tmp_path_factory.mktemp("prefect") / "clone")
    add_flows(folder)
    with serving(folder) as found:
        yield found
