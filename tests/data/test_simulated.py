from dataclasses import replace

import numpy as np
import pytest

from lpo.config import load_params
from lpo.data import simulated
from lpo.data.schema import PAIRS
from lpo.data.simulated import Painter, counterpart, label, make_pairs, rendered_pairs
from lpo.emoji.render import render
from lpo.emoji.scenes import parse, sample_prompts, split_of


@pytest.fixture
def config(repository):
    return replace(load_params(repository / "params.yaml").dataset, images_per_prompt=3)


@pytest.fixture
def painter():
    """A base that paints noise, of its seed alone, and a VAE that loses nothing."""

    def sample(captions, seeds):
        return np.stack([np.random.default_rng(s).integers(0, 256, (32, 32, 3), dtype=np.uint8) for s in seeds])

    return Painter(sample, lambda pictures: pictures)


def test_the_frame_has_the_schema_and_is_a_function_of_its_seed(config, painter):
    frame, again = (make_pairs("train", 30, 4, painter, config, seed=5) for _ in range(2))
    assert set(PAIRS) <= set(frame.columns)
    assert frame.equals(again) and not frame.equals(make_pairs("train", 30, 4, painter, config, seed=6))
    assert len(frame) == 30 + 4 * (3 + 3)  # three pictures make three pairs, and each stands beside a rendered one
    assert frame["ranking_id"].tolist() == list(range(len(frame)))
    assert set(frame["label_0"] + frame["label_1"]) == {1.0}
    counts = frame["caption"].map(frame["caption"].value_counts())
    assert (counts <= frame["num_example_per_prompt"]).all()


def test_every_caption_belongs_to_the_split(config, painter):
    for split in ("train", "validation", "test"):
        captions = make_pairs(split, 40, 2, painter, config, seed=0)["caption"]
        assert {split_of(parse(caption)) for caption in captions} == {split}


def test_who_made_a_picture_is_told(config, painter):
    frame = make_pairs("train", 20, 5, painter, config, seed=1)
    sides = frame.groupby("difference")[["model_0", "model_1"]].agg(set)
    assert sides.loc["sampled"].tolist() == [{"base"}, {"base"}]
    mixed = frame[frame["difference"] == "mixed"]
    assert (mixed["model_0"] != mixed["model_1"]).all() and mixed["model_0"].nunique() == 2
    rest = frame[~frame["difference"].isin(["sampled", "mixed"])]
    assert set(rest["model_0"]) | set(rest["model_1"]) == {"render"}


def test_the_best_image_is_the_labelled_one(config, painter):
    frame = make_pairs("train", 60, 0, painter, config, seed=2)
    for row in frame.itertuples():
        expected = {1.0: row.image_0_uid, 0.0: row.image_1_uid, 0.5: ""}[row.label_0]
        assert row.best_image_uid == expected


def test_annotators_are_bradley_terry_with_flips_and_ties(config):
    rng, n = np.random.default_rng(0), 40_000
    config = replace(config, temperature=0.5, flip_rate=0.1, tie_margin=0.2)
    for gap in (0.5, 1.0, -1.0):
        p = 1 / (1 + np.exp(-gap / 0.5))
        expected = 0.9 * p + 0.1 * (1 - p)
        assert label(np.full(n, gap), config, rng).mean() == pytest.approx(expected, abs=0.01)
    assert (label(np.full(100, 0.19), config, rng) == 0.5).all()


def test_a_near_miss_usually_loses_against_the_faithful_drawing(config, painter):
    config = replace(config, temperature=1e-6, flip_rate=0.0, aesthetic_weight=0.0)
    frame = make_pairs("train", 200, 0, painter, config, seed=3)
    decided = frame[frame["difference"] != "flaws"]
    assert (decided["label_0"] != 0.5).all()
    assert (frame.loc[frame["difference"] == "flaws", "label_0"] == 0.5).all()


def test_near_misses_have_equal_flaws_and_half_of_all_are_mirrored(config, painter, monkeypatch):
    drawn = []
    monkeypatch.setattr(simulated, "render", lambda scenes, rng: drawn.append(scenes) or render(scenes, rng))
    prompts = sample_prompts("train", 60, np.random.default_rng(0))
    others = [counterpart(prompt, np.random.default_rng(i)) for i, prompt in enumerate(prompts)]
    rendered_pairs(prompts, others, painter, np.random.default_rng(1))
    flaws = [[(scene.blur, scene.fade, scene.clutter) for scene in side] for side in drawn]
    same = [one == other for one, other in zip(*flaws, strict=True)]
    assert {kind for (_, kind), equal in zip(others, same, strict=True) if not equal} == {"flaws"}
    assert all(equal for (_, kind), equal in zip(others, same, strict=True) if kind != "flaws")
    frame = make_pairs("train", 200, 0, painter, replace(config, mirrored_share=0.5), seed=4)
    asked = [parse(caption) for caption in frame.loc[frame["difference"] == "relation", "caption"]]
    assert 100 <= len(asked) < 130 and all(prompt.relation for prompt in asked)
    frame = make_pairs("train", 40, 0, painter, replace(config, mirrored_share=1.0), seed=4)
    assert set(frame["difference"]) == {"relation"}
