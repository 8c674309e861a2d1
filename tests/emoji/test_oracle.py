from dataclasses import replace

import numpy as np
import pytest

from lpo.emoji.oracle import holds, judge
from lpo.emoji.render import render
from lpo.emoji.scenes import Scene, flawed, layout, near_miss, parse, sample_prompts


def pictures(scenes):
    return render(scenes, np.random.default_rng(0))


def test_every_faithful_drawing_is_all_correct_also_with_flaws():
    rng = np.random.default_rng(1)
    prompts = sample_prompts("test", 300, rng)
    clean = [layout(prompt, rng) for prompt in prompts]
    for scenes in (clean, [flawed(scene, rng) for scene in clean]):
        verdicts = judge(pictures(scenes), prompts)
        assert np.mean([v.all_correct for v in verdicts]) >= 0.99


def test_a_near_miss_is_never_all_correct():
    rng = np.random.default_rng(2)
    prompts = sample_prompts("test", 300, rng)
    wrong = [layout(near_miss(prompt, rng)[0], rng) for prompt in prompts]
    assert np.mean([v.all_correct for v in judge(pictures(wrong), prompts)]) <= 0.01


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        ("a cat right of a taxi at night", {"relation"}),
        ("a cat left of a taxi", {"background"}),
        ("a cat left of a dog at night", {"object", "relation"}),
        ("a cat at night", {"object", "relation"}),
    ],
)
def test_only_the_question_that_a_drawing_fails_is_answered_wrong(drawn, wrong):
    scene = layout(parse(drawn), np.random.default_rng(3))
    (verdict,) = judge(pictures([scene]), [parse("a cat left of a taxi at night")])
    assert {kind for kind, right in verdict.questions if not right} == wrong


def test_colour_and_count_are_questions_of_their_own():
    rng = np.random.default_rng(4)
    blue, three = layout(parse("a blue heart"), rng), layout(parse("three cats"), rng)
    first, second = judge(pictures([blue, three]), [parse("a red heart"), parse("four cats")])
    assert dict(first.questions) == {"object": True, "colour": False, "only": True}
    assert dict(second.questions) == {"object": True, "count": False}


def test_an_extra_object_is_noticed():
    scene = layout(parse("a cat and a dog"), np.random.default_rng(5))
    (verdict,) = judge(pictures([scene]), [parse("a cat")])
    assert dict(verdict.questions) == {"object": True, "only": False}


def test_each_flaw_alone_costs_aesthetics_and_a_clean_drawing_has_ten():
    scene = layout(parse("a frog above a red ball on sand"), np.random.default_rng(6))
    prompt = parse("a frog above a red ball on sand")
    variants = [scene, replace(scene, blur=0.6), replace(scene, fade=0.7), replace(scene, clutter=8)]
    clean, *flaws = [v.aesthetic for v in judge(pictures(variants), [prompt] * 4)]
    assert clean == pytest.approx(10, abs=0.01)
    assert all(value < 9 for value in flaws)


def test_an_empty_picture_answers_no_question_and_is_not_beautiful():
    (verdict,) = judge(pictures([Scene((), "grass")]), [parse("a cat on grass")])
    assert dict(verdict.questions) == {"object": False, "only": True, "background": True}
    assert verdict.aesthetic < 5 and not verdict.all_correct


def test_relations_are_each_others_mirror():
    a, b = (1, 9), (17, 10)
    assert holds("left of", a, b) and holds("right of", b, a)
    assert not holds("right of", a, b) and not holds("above", a, b)
    assert holds("above", (9, 1), (8, 17)) and holds("below", (8, 17), (9, 1))
    assert not holds("left of", (0, 0), (5, 0))
