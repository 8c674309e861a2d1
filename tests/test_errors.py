from __future__ import annotations

import pickle

from lpo.errors import ConfigError, LpoError


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = LpoError("label_0 is 2", "data/pairs/train-00000.parquet, row 7", "labels are 0, 0.5 or 1")
    assert str(error) == (
        "label_0 is 2\n  where: data/pairs/train-00000.parquet, row 7\n  fix: labels are 0, 0.5 or 1"
    )


def test_parts_that_are_not_given_leave_no_line() -> None:
    assert str(LpoError("the disk is full")) == "the disk is full"
    assert str(LpoError("the disk is full", remedy="make room")) == "the disk is full\n  fix: make room"


def test_a_config_error_carries_and_shows_every_mistake() -> None:
    mistakes = ["params.yaml: tune.beta: must be > 0, is -3", "params.yaml: seed: missing"]
    error = ConfigError(mistakes, "params.yaml")
    assert isinstance(error, LpoError)
    assert error.mistakes == mistakes
    assert str(error).startswith("2 mistakes in the parameters:\n  params.yaml: tune.beta: must be > 0, is -3\n")
    assert str(ConfigError(mistakes[:1])).startswith("1 mistake in")


def test_errors_survive_the_way_from_a_worker_process() -> None:
    plain, config = LpoError("a", "b", "c"), ConfigError(["x: y"], "params.yaml")
    assert str(pickle.loads(pickle.dumps(plain))) == str(plain)
    again = pickle.loads(pickle.dumps(config))
    assert (str(again), again.mistakes) == (str(config), config.mistakes)
