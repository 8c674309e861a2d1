import numpy as np
import pytest

from lpo.emoji import scenes
from lpo.emoji.render import render
from lpo.emoji.scenes import Prompt, flawed, layout, near_miss, parse, prompts_of, sample_prompts, split_of


def test_every_caption_parses_back_to_its_prompt():
    for split in ("train", "validation", "test"):
        for prompt in sample_prompts(split, 300, np.random.default_rng(0)):
            assert parse(prompt.caption) == prompt


def test_captions_read_as_english():
    assert Prompt(("apple",), background="night").caption == "an apple at night"
    assert Prompt(("fox",), count=3).caption == "three foxes"
    assert Prompt(("red heart", "octopus"), relation="left of", background="sea").caption == (
        "a red heart left of an octopus under water"
    )
    with pytest.raises(KeyError):
        parse("a cat on the moon")


def test_a_pair_of_objects_lives_in_one_split_whatever_its_relation_and_background():
    where: dict[frozenset[str], set[str]] = {}
    for split in ("train", "validation", "test"):
        for category in ("pair", "colour_pair", "relation"):
            for prompt in prompts_of(split)[category]:
                where.setdefault(frozenset(prompt.objects), set()).add(split)
    assert len(where) == 32 * 31 // 2
    assert all(len(splits) == 1 for splits in where.values())
    assert split_of(Prompt(("cat", "dog"), relation="above")) == split_of(Prompt(("dog", "cat")))


def test_unique_sampling_never_repeats_and_runs_dry_gracefully():
    captions = [p.caption for p in sample_prompts("test", 1000, np.random.default_rng(1), unique=True)]
    assert len(set(captions)) == 1000


def test_a_near_miss_differs_in_what_it_says():
    rng = np.random.default_rng(2)
    for prompt in sample_prompts("train", 500, rng):
        other, kind = near_miss(prompt, rng)
        assert other != prompt
        same = {
            "object": other.count == prompt.count and other.relation == prompt.relation,
            "background": other.objects == prompt.objects and other.background != prompt.background,
            "relation": other.objects == prompt.objects and other.relation != prompt.relation,
            "missing": set(other.objects) < set(prompt.objects),
            "doubled": other.count == 2 and set(other.objects) < set(prompt.objects),
            "count": other.objects == prompt.objects and other.count != prompt.count,
            "colour": [o.split()[-1] for o in other.objects] == [o.split()[-1] for o in prompt.objects],
        }
        assert same[kind], (prompt, other, kind)


def test_objects_stay_on_the_canvas_and_apart():
    rng = np.random.default_rng(3)
    for prompt in sample_prompts("train", 500, rng):
        places = [(x, y) for _, x, y in layout(prompt, rng).objects]
        assert all(0 <= v <= scenes.CANVAS - scenes.SPRITE for place in places for v in place)
        for i, a in enumerate(places):
            for b in places[i + 1 :]:
                assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= scenes.SPRITE


def test_flaws_change_the_picture_but_not_what_is_drawn():
    rng = np.random.default_rng(4)
    scene = layout(parse("a cat left of a taxi at night"), rng)
    worse = next(s for s in iter(lambda: flawed(scene, rng), None) if s.blur and s.clutter and s.fade < 1)
    assert (worse.objects, worse.background) == (scene.objects, scene.background)
    clean, flawed_picture = render([scene, worse], np.random.default_rng(5))
    assert clean.shape == (32, 32, 3) and clean.dtype == np.uint8
    assert np.abs(clean.astype(int) - flawed_picture).mean() > 2
