"""The pipeline is run from nothing twice: by `dvc repro` in one workspace, by the flow of Prefect in another.

Of several pytest processes (`make test` starts three) the first that needs the run of `dvc repro` makes it for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Service, add_flows, serving
from support.workspace import commit, make, run

from tasks.workspace import locked


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a `dvc repro` from nothing, results committed. Tests leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pipeline"
    with locked(folder / "lock", "pytest", lambda holder: None):
        if not (folder / "done").exists():
            run(make(folder / "finished"), "dvc", "repro")
            commit(folder / "finished")
            (folder / "done").touch()
    return folder / "finished"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A clone that nothing was run in yet, its Prefect server and its worker."""
    folder = make(tmp_path_factory.mktemp("prefect") / "clone")
    add_flows(folder)
    with serving(folder) as found:
        yield found
