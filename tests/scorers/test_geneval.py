"""GenEval's protocol on objects made by hand: boxes are left, top, right, bottom."""

import json

import numpy as np
import pytest
import torch

from lpo.errors import LpoError
from lpo.scorers.detector import cut_out, objects
from lpo.scorers.geneval import Found, check_task, correct, counted, relations

CLASSES = ["cat", "dog", "bench"]


def found(left=0, top=0, right=10, bottom=10, score=0.95) -> Found:
    return Found(np.array([left, top, right, bottom]), np.ones((4, 4), bool), score)


def no_colours(objects, name):
    raise AssertionError("no colour was asked for")


def judge(task: dict, objects: dict, colours=no_colours) -> bool:
    return correct(task, counted(objects, task["tag"]), colours)


def include(*clauses: dict, tag: str = "two_object", **others) -> dict:
    return {"tag": tag, "include": [{"count": 1} | clause for clause in clauses], **others}


def test_single_and_two_objects():
    one = include({"class": "cat"}, tag="single_object")
    assert judge(one, {"cat": [found(score=0.31)]})
    assert not judge(one, {"cat": [found(score=0.30)]})  # above the threshold, not at it
    assert not judge(one, {"dog": [found()]})
    two = include({"class": "cat"}, {"class": "dog"})
    assert judge(two, {"cat": [found()], "dog": [found()], "bench": [found()]})
    assert not judge(two, {"cat": [found(), found()]})


@pytest.mark.parametrize(
    ("scores", "right"),
    [([0.95] * 3, True), ([0.95] * 2, False), ([0.95] * 4, False), ([0.95] * 3 + [0.89] * 2, True),
     ([0.95, 0.95, 0.9], False)],
)  # fmt: skip
def test_counting_asks_for_the_very_number_and_for_confidence(scores, right):
    task = {"tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}]}
    assert judge(task, {"cat": [found(score=score) for score in scores]}) is right


def test_at_most_sixteen_objects_count():
    assert len(counted({"cat": [found(score=0.5)] * 20}, "colors")["cat"]) == 16
    assert counted({"cat": [found(score=0.1)]}, "colors") == {}


def test_the_colour_is_that_of_the_most_confident_objects():
    task = include({"class": "cat", "color": "red"}, tag="colors")
    cats = {"cat": [found(score=0.5), found(score=0.9)]}

    def colour(objects, name):
        assert name == "cat"
        return ["red" if o.score == 0.9 else "blue" for o in objects]

    assert judge(task, cats, colour)
    assert not judge(include({"class": "cat", "color": "blue"}, tag="colors"), cats, colour)


def test_colour_attribution_asks_for_both():
    task = include({"class": "cat", "color": "red"}, {"class": "dog", "color": "blue"}, tag="color_attr")
    both = {"cat": [found()], "dog": [found()]}
    assert judge(task, both, lambda objects, name: [{"cat": "red", "dog": "blue"}[name]])
    assert not judge(task, both, lambda objects, name: [{"cat": "blue", "dog": "red"}[name]])


def test_position():
    task = include({"class": "dog"}, {"class": "cat", "position": ["left of", 0]}, tag="position")
    left, right = found(0, 0, 10, 10), found(40, 0, 50, 10)
    assert judge(task, {"cat": [left], "dog": [right]})
    assert not judge(task, {"cat": [right], "dog": [left]})
    assert not judge(task, {"cat": [left]})  # nothing to be left of


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        ((0, 100, 20, 120), {"left of"}),
        ((200, 100, 220, 120), {"right of"}),
        ((100, 0, 120, 20), {"above"}),
        ((100, 200, 120, 220), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # o = (-100, -100), o' = (-96, -96), d = (-0.68, -0.68)
        ((103, 100, 123, 120), set()),  # 3 apart, less than a tenth of 40
        ((100, 100, 120, 120), set()),
        ((0, 60, 20, 80), {"left of"}),  # o = (-100, -40), o' = (-96, -36), d = (-0.89, -0.33)
        ((106, 100, 126, 120), set()),  # o = 6, o' = 2, d = 1/3: too near for a verdict
        ((110, 100, 130, 120), {"right of"}),  # o = 10, o' = 6, d = 0.6
    ],
)
def test_relations_by_hand(a, expected):
    assert relations(np.array(a), np.array((100, 100, 120, 120))) == expected


@pytest.mark.parametrize(
    ("clause", "message"),
    [({"class": "unicorn"}, "class 'unicorn'"), ({"class": "cat", "color": "beige"}, "colour 'beige'"),
     ({"class": "cat", "position": ["inside", 0]}, "relation 'inside'"),
     ({"class": "cat", "position": ["above", 1]}, "position beside clause 1"),
     ({"class": "cat", "count": "2"}, "count '2'")],
)  # fmt: skip
def test_a_task_that_nothing_can_judge_is_refused(clause, message):
    with pytest.raises(LpoError, match=message):
        check_task(json.dumps(include({"class": "dog"}, clause)), CLASSES)
    check_task(json.dumps(include({"class": "dog"}, {"class": "cat", "position": ["above", 0]})), CLASSES)


def test_objects_of_queries_by_hand():
    """Three queries over classes cat and dog: a dog on a rectangle, a cat without a mask, nothing."""
    classes = torch.log(torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]]))
    masks = torch.full((3, 6, 8), -5.0)
    logit = torch.logit(torch.tensor(0.75))
    masks[0, 1:4, 2:7] = logit
    made = objects(classes, masks, ["cat", "dog"])
    assert list(made) == ["dog"]
    (dog,) = made["dog"]
    assert dog.box.tolist() == [2, 1, 7, 4]
    assert dog.score == pytest.approx(0.8 * 0.75)
    assert dog.mask.sum() == 15 and dog.mask[1:4, 2:7].all()


def test_a_cut_out_object_stands_on_grey():
    from PIL import Image

    mask = np.zeros((6, 8), bool)
    mask[1, 2] = mask[3, 6] = True
    cut = np.asarray(cut_out(Image.new("RGB", (8, 6), "red"), Found(np.array([2, 1, 7, 4]), mask, 1.0)))
    assert cut.shape == (3, 5, 3)
    assert cut[0, 0].tolist() == cut[2, 4].tolist() == [255, 0, 0]
    assert cut[1, 1].tolist() == [0x99] * 3
