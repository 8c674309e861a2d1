"""The commands of the nightly: they read the parameters, call one function, and print one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.commands import ingest, promote
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.registry import ledger


@pytest.mark.parametrize(("name", "module"), [("ingest", ingest), ("promote", promote)])
def test_a_command_calls_its_module_with_the_parameters(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: object
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(module, "run", calls.append)
    assert CliRunner().invoke(cli.app, [name]).exit_code == 0
    assert calls == [load_params()]


def test_an_empty_inbox_answers_in_one_line(project: Path) -> None:
    result = CliRunner().invoke(cli.app, ["ingest"])
    assert json.loads(result.stdout) == {"new_pairs": 0, "quarantined": 0, "duplicates": 0, "files": []}


def test_models_lists_and_rolls_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(cli.app, ["models"]).stdout == "in use: base\n"
    assert isinstance(CliRunner().invoke(cli.app, ["models", "rollback"]).exception, LpoError)
    asked: list[str | None] = []
    monkeypatch.setattr(ledger, "rollback", asked.append)
    CliRunner().invoke(cli.app, ["models", "rollback"])
    CliRunner().invoke(cli.app, ["models", "rollback", "lpo-1"])
    assert asked == [None, "lpo-1"]
