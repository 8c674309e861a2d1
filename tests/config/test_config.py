from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lpo import config
from lpo.config import Margins, SamplerSettings, check_params, load_params
from lpo.config.reader import Range, Reading
from lpo.errors import ConfigError, LpoError


@pytest.fixture
def tree(repository: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(repository / "params.yaml")


def set_(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree[name]
    tree[last] = value


def mistakes(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_params(tree, "some/params.yaml")
    return caught.value.mistakes


def test_the_file_of_the_repository_is_valid_and_every_value_arrives(repository: Path, tree: dict[str, Any]) -> None:
    def compare(section: Any, node: Any) -> None:
        if dataclasses.is_dataclass(section) or isinstance(node, dict):
            values = section if isinstance(section, dict) else vars(section)
            assert set(values) == set(node)
            for name, value in values.items():
                compare(value, node[name])
        else:
            assert section == (tuple(node) if isinstance(node, list) else node)

    compare(load_params(repository / "params.yaml"), tree)


def test_sections_are_typed_and_frozen(tree: dict[str, Any]) -> None:
    set_(tree, "tune.beta", 100)
    set_(tree, "tune.timestep_range", [250, 950])
    params = check_params(tree, "params.yaml")
    assert isinstance(params.tune.beta, float)
    assert params.tune.beta == 100.0
    assert params.tune.timestep_range == (250, 950)
    assert params.filter.strategies["3"] == Margins(aesthetic=-1.0, clip=0.0, vqa=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.tune.beta = 1.0  # type: ignore[misc]


def test_all_mistakes_come_at_once_each_with_its_path(tree: dict[str, Any]) -> None:
    set_(tree, "tune.beta", -3)
    set_(tree, "tune.bata", 500)
    set_(tree, "reward.steps", "many")
    set_(tree, "filter.strategies.2.clip", None)
    set_(tree, "model.family", "sdx")
    del tree["tracking"]["project"]
    del tree["report"]
    assert sorted(mistakes(tree)) == sorted(
        [
            "params.yaml: tune.beta: must be > 0, is -3",
            "params.yaml: tune.bata: unknown key; did you mean beta?",
            "params.yaml: reward.steps: must be a whole number, is 'many'",
            "params.yaml: filter.strategies.2.clip: must be a number, is empty",
            "params.yaml: model.family: must be one of sd, sdxl, sd3, flux, flux2_klein, qwen_image, sana, z_image "
            "(did you mean sdxl?), is 'sdx'",
            "params.yaml: tracking.project: missing",
            "params.yaml: report: missing",
        ]
    )


def test_a_folder_of_pairs_must_be_named(tree: dict[str, Any]) -> None:
    set_(tree, "dataset.source", "folder")
    set_(tree, "evaluate.judges", ["pickscore"])
    assert mistakes(tree) == ["params.yaml: dataset.path: must name a folder where dataset.source is folder, is empty"]
    set_(tree, "dataset.path", "data/sources/mine")
    assert check_params(tree, "params.yaml").dataset.path == "data/sources/mine"


def test_a_misspelt_key_is_one_mistake_not_two(tree: dict[str, Any]) -> None:
    tree["tune"]["betta"] = tree["tune"].pop("beta")
    assert mistakes(tree) == ["params.yaml: tune.betta: unknown key; did you mean beta?"]
    tree["xylophone"] = 1
    assert "params.yaml: xylophone: unknown key" in mistakes(tree)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("seed", -1, "must be >= 0, is -1"),
        ("seed", True, "must be a whole number, is true"),
        ("seed", 1.5, "must be a whole number, is 1.5"),
        ("reward.shared_noise", 1, "must be true or false, is 1"),
        ("reward.learning_rate", float("nan"), "must be finite, is nan"),
        ("reward.learning_rate", 0, "must be > 0, is 0"),
        ("tune.clip_epsilon", 1.0, "must be < 1, is 1.0"),
        ("filter.max_quarantined", 1.5, "must be <= 1, is 1.5"),
        ("model.path", "", "must not be empty, is ''"),
        ("tune", 3, "must be a section with keys of its own, is 3"),
        ("filter.strategies", ["2"], "must be a section of named entries, is ['2']"),
        ("tune.timestep_range", [0], "must be a list of 2 numbers, is [0]"),
        ("tune.timestep_range", [900, 100], "must be ascending, is [900, 100]"),
        ("pretrain.gate_plain", [0.4, 7], "must be <= 1, is [0.4, 7]"),
        (
            "tune.threshold.schedule", "sigma^2",
            "must be one of constant, sigma, sigma_squared, linear, linear_over_steps, quantile",
        ),
    ],
)
def test_a_wrong_value_is_told(tree: dict[str, Any], path: str, value: Any, said: str) -> None:
    set_(tree, path, value)
    (mistake,) = mistakes(tree)
    assert mistake.startswith(f"params.yaml: {path}: {said}")


def test_what_no_field_can_say_by_itself_is_told_even_beside_other_mistakes(tree: dict[str, Any]) -> None:
    set_(tree, "tune.beta", "high")
    set_(tree, "tune.threshold.low", 0.6)
    set_(tree, "tune.prompts_per_rollout", tree["tune"]["prompts"] + 1)
    set_(tree, "reward.warmup_steps", tree["reward"]["steps"] + 1)
    set_(tree, "filter.strategy", "4")
    set_(tree, "dataset.rendered_pairs", 0)
    set_(tree, "dataset.sampled_prompts", 0)
    paths = {mistake.split(": ")[1] for mistake in mistakes(tree)}
    assert paths == {
        "tune.beta",
        "tune.threshold.low",
        "tune.prompts_per_rollout",
        "reward.warmup_steps",
        "filter.strategy",
        "dataset.rendered_pairs",
    }


def test_null_turns_clipping_off_and_nothing_else(tree: dict[str, Any]) -> None:
    set_(tree, "tune.max_grad_norm", None)
    assert check_params(tree, "params.yaml").tune.max_grad_norm is None
    set_(tree, "tune.max_grad_norm", -1)
    assert mistakes(tree) == ["params.yaml: tune.max_grad_norm: must be > 0, is -1"]


def test_the_ways_in_which_dvc_writes_values_are_understood(project: Path) -> None:
    """`dvc exp run -S` writes 1e-05 without a point and the strategy without quotes."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    text = text.replace('strategy: tolerant', "strategy: 1").replace("learning_rate: 1.0e-3", "learning_rate: 1e-05")
    Path("params.yaml").write_text(text, encoding="utf-8")
    params = load_params()
    assert params.filter.strategy == "1"
    assert params.tune.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "said", "where"),
    [
        ("seed: 1\nmodel: [\n", "not valid YAML", "params.yaml, line 3"),
        ("seed: 1\nseed: 2\n", "duplicate key", "params.yaml, line 2"),
        ("", "holds no sections", "params.yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_line(project: Path, text: str, said: str, where: str) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(LpoError, match=said) as caught:
        load_params()
    assert caught.value.where.endswith(where)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LpoError, match="no such parameter file"):
        load_params(tmp_path / "params.yaml")


def test_no_section_has_a_default() -> None:
    """params.yaml holds every value: a default here would be a second place."""
    classes = [found for found in vars(config).values() if dataclasses.is_dataclass(found)]
    sections = [found for found in classes if found not in (Range, Reading, SamplerSettings)]
    fields = [field for section in sections for field in dataclasses.fields(section)]
    assert len(fields) > 50
    defaults = [field for field in fields if field.default is not field.default_factory]
    assert defaults == []


def test_judges_are_a_list_of_known_names_each_once(tree: dict[str, Any]) -> None:
    set_(tree, "evaluate.judges", ["pickscore", "hps_v2"])
    assert check_params(tree, "params.yaml").evaluate.judges == ("pickscore", "hps_v2")
    for wrong, message in (
        ([], "evaluate.judges: must be a list with something in it, is []"),
        ("pickscore", "evaluate.judges: must be a list with something in it, is 'pickscore'"),
        (["pickscore", "pickscore"], "evaluate.judges: each judge once, is ['pickscore', 'pickscore']"),
        (
            ["emoji", "aesthetic"],
            "evaluate.judges: emoji and aesthetic both write the column aesthetic; leave one of them out",
        ),
    ):
        set_(tree, "evaluate.judges", wrong)
        assert mistakes(tree) == [f"params.yaml: {message}"]
    set_(tree, "evaluate.judges", ["emoji", "hps_v2"])
    set_(tree, "evaluate.tuned", "owner/name/unet")
    assert check_params(tree, "params.yaml").evaluate.judges == ("emoji", "hps_v2")
    set_(tree, "evaluate.judges", ["pickscor"])
    assert "evaluate.judges[0]: must be one of" in mistakes(tree)[0]
    assert "did you mean pickscore?" in mistakes(tree)[0]


@pytest.mark.parametrize("source", ["pickapic", "pickapic_v2", "hpdv2", "folder"])
def test_emoji_judges_simulated_pairs_only(tree: dict[str, Any], source: str) -> None:
    set_(tree, "dataset.source", source)
    set_(tree, "dataset.path", "data/mine")
    for judges in (["emoji"], ["emoji", "pickscore"]):
        set_(tree, "evaluate.judges", judges)
        said = f"params.yaml: evaluate.judges: emoji judges scenes of the emoji world only, dataset.source is {source}"
        assert mistakes(tree) == [said]
    set_(tree, "evaluate.judges", ["pickscore"])
    check_params(tree, "params.yaml")


def test_margins_are_optional_and_their_names_are_those_of_judges(tree: dict[str, Any]) -> None:
    set_(tree, "promote.margins", {"imagereward": 0.05})
    assert check_params(tree, "params.yaml").promote.margins == {"imagereward": 0.05}
    set_(tree, "promote.margins", {})
    assert check_params(tree, "params.yaml").promote.margins == {}
    set_(tree, "promote.margins", {"image_reward": 0.05, "pickscore": -1})
    assert mistakes(tree) == ["params.yaml: promote.margins.pickscore: must be >= 0, is -1"]
    set_(tree, "promote.margins", {"image_reward": 0.05})
    said = "params.yaml: promote.margins.image_reward: no judge measures it; did you mean imagereward?"
    assert mistakes(tree) == [said]
