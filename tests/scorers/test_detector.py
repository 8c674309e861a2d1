"""GenEval's two models from folders as published, tiny and random."""

import json

import pytest
import torch
from support.judge_folders import clip_folder, detector_folder
from support.published_judges import photo

from lpo.errors import LpoError
from lpo.scorers import detector
from lpo.scorers.geneval import COLOURS, Found

CPU = torch.device("cpu")
LABELS = ["cat", "mouse", "remote", "keyboard", "bench"]
TASKS = {"a cat": json.dumps({"tag": "single_object", "include": [{"class": "cat", "count": 1}]})}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("geneval")
    detector_folder(folder / "detector", labels=tuple(LABELS))
    return str(folder / "detector"), str(clip_folder(folder / "clip"))


def test_the_models_load_and_judge(folders):
    geneval = detector.load(*folders, TASKS, CPU)
    assert geneval.classes == ["cat", "computer mouse", "tv remote", "computer keyboard", "bench"]
    scores = geneval.score([photo(0), photo(1)], ["a cat", "a cat"])
    assert set(scores.tolist()) <= {0.0, 1.0} and scores.shape == (2,)


def test_classes_of_coco_are_named_by_their_index(folders):
    """transformers calls six of the 80 by other names than GenEval; every task of GenEval must pass the check."""
    named = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
             "dining table": "diningtable", "tv": "tvmonitor", "computer mouse": "mouse", "tv remote": "remote",
             "computer keyboard": "keyboard"}  # fmt: skip
    geneval = detector.load(*folders, TASKS, CPU)
    geneval.detector.config.id2label = {i: named.get(name, name) for i, name in enumerate(detector.OBJECTS)}
    assert geneval.classes == detector.OBJECTS and len(set(geneval.classes)) == 80
    assert [geneval.classes[i] for i in (3, 4, 57, 58, 60, 62, 64)] == [
        "motorcycle", "airplane", "couch", "potted plant", "dining table", "tv", "computer mouse",
    ]  # fmt: skip


def test_a_detection_is_that_of_the_models_own_output(folders, monkeypatch):
    """With every object kept, scores are p(class) times the mask's mean probability, masks have the picture's size."""
    geneval = detector.load(*folders, TASKS, CPU)
    monkeypatch.setattr(detector, "CONFIDENCE", 0.0)
    found = [one for objects in geneval.detect(photo(0, 48, 40)).values() for one in objects]
    assert found
    for one in found:
        left, top, right, bottom = one.box
        assert one.mask.shape == (40, 48) and one.mask[top:bottom, left:right].sum() == one.mask.sum()
        assert one.mask[:, left].any() and one.mask[:, right - 1].any()
        assert one.mask[top].any() and one.mask[bottom - 1].any()


@torch.no_grad()
def test_the_colour_is_the_nearest_sentence(folders):
    """Against the formula written out: mean of three unit embeddings, normalised, highest cosine."""
    geneval = detector.load(*folders, TASKS, CPU)
    picture = photo(3)
    whole = Found(torch.tensor([0, 0, 64, 64]).numpy(), torch.ones(64, 64, dtype=torch.bool).numpy(), 1.0)
    (answer,) = geneval.colours(picture, [whole], "cat")
    seen, cosines = geneval.clip.embed_pixels(geneval.pixels([picture])), {}
    for colour in COLOURS:
        words = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat", f"a photo of a {colour} object"]
        mean = geneval.clip.embed_text(words).mean(0)
        cosines[colour] = float(seen[0] @ mean / mean.norm())
    assert answer == max(cosines, key=cosines.__getitem__)


def test_tasks_are_checked_when_the_models_load(folders):
    with pytest.raises(LpoError, match="class 'unicorn'"):
        detector.load(*folders, {"x": TASKS["a cat"].replace("cat", "unicorn")}, CPU)
    with pytest.raises(LpoError, match="no task of GenEval"):
        detector.load(*folders, {"x": json.dumps({"tag": "colors", "include": 3})}, CPU)
