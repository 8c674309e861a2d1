"""The two models of GenEval: Mask2Former finds objects, CLIP names their colours.

GenEval runs the Mask2Former (Swin-S, COCO instances) of MMDetection 2, which today's torch does not run. Here it is the
authors' own checkpoint of the same model in transformers, facebook/mask2former-swin-small-coco-instance. Pictures are
sized as there (shorter side 800, longer at most 1333), and objects come out as there:

    score = p(class) * mean of sigmoid(mask logits) where they are positive        the 100 best of query x class
    box   = the edges of the mask, right and bottom exclusive

The weights are of another training run, and the pictures are scaled to multiples of 32 pixels instead of padded, so
single verdicts can differ; figures of GenEval from here compare with each other, not with tables to the last point.
Source: Cheng et al. 2022 (arXiv 2112.01527); Ghosh et al. 2023 (arXiv 2310.11513) for the colours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from lpo.errors import LpoError
from lpo.hub import from_pretrained
from lpo.scorers.clip_pair import ClipPair, Pixels, load_pair
from lpo.scorers.geneval import COLOURS, CONFIDENCE, Found, check_task, correct, counted

SHORTER, LONGER = 800, 1333  # sides of what the detector sees, in pixels
BEST = 100
COCO = (  # its 80 classes in their order, as GenEval calls them; every detector of COCO has this order, not these names
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
OBJECTS = COCO.split(", ")
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # COCO -> GenEval
GREY = "#999999"  # around an object that is cut out
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


@dataclass
class GenEval:
    """Judges pictures by the tasks of their prompts. `tasks` maps a prompt to the JSON text of its task."""

    detector: Mask2FormerForUniversalSegmentation
    processor: Mask2FormerImageProcessorPil
    clip: ClipPair
    pixels: Pixels
    tasks: Mapping[str, str]
    words: dict[str, torch.Tensor] = field(default_factory=dict)  # class -> its colours' embeddings (10, D)

    @property
    def classes(self) -> list[str]:
        """What GenEval calls the detector's classes: COCO's 80 by their index, other classes by their names."""
        labels = [self.detector.config.id2label[i] for i in range(self.detector.config.num_labels)]
        if len(labels) == len(OBJECTS) and sum(map(str.__eq__, labels, OBJECTS)) > len(OBJECTS) // 2:
            return OBJECTS
        return [RENAMED.get(label, label) for label in labels]

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32: 1 where a picture is right in everything that its task asks, else 0."""
        verdicts = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            task = json.loads(self.tasks[prompt])
            objects = counted(self.detect(picture), task["tag"])
            verdicts.append(correct(task, objects, lambda found, name, p=picture: self.colours(p, found, name)))  # type: ignore[misc]
        return torch.tensor(verdicts, dtype=torch.float32)

    @torch.no_grad()
    def detect(self, picture: Image.Image) -> dict[str, list[Found]]:
        """Objects above the lower confidence, by class."""
        inputs = self.processor([picture.convert("RGB")], return_tensors="pt").to(self.detector.device)
        output = self.detector(**inputs)
        logits = F.interpolate(
            output.masks_queries_logits, (picture.height, picture.width), mode="bilinear", align_corners=False
        )[0]
        return objects(output.class_queries_logits[0], logits, self.classes)

    @torch.no_grad()
    def colours(self, picture: Image.Image, found: Sequence[Found], name: str) -> list[str]:
        """The colour of each object: the nearest of ten, each the mean of three sentences, in CLIP's embedding."""
        if name not in self.words:
            sentences = [[t.format(colour=colour, name=name) for t in TEMPLATES] for colour in COLOURS]
            means = [self.clip.embed_text(three).mean(0) for three in sentences]
            self.words[name] = F.normalize(torch.stack(means), dim=1)
        seen = self.clip.embed_pixels(self.pixels([cut_out(picture, one) for one in found]))
        return [COLOURS[i] for i in (seen @ self.words[name].T).argmax(1).tolist()]


def objects(class_logits: torch.Tensor, mask_logits: torch.Tensor, classes: Sequence[str]) -> dict[str, list[Found]]:
    """Class logits (Q, C + 1), the last "no object", and mask logits (Q, H, W) -> objects by class (see the top)."""
    probabilities = class_logits.softmax(1)[:, :-1]
    best = probabilities.flatten().topk(min(BEST, probabilities.numel()))
    found: dict[str, list[Found]] = {}
    for probability, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, number = divmod(place, len(classes))
        if probability <= CONFIDENCE:  # the mask's factor is at most 1
            break
        logits = mask_logits[query]
        mask = logits > 0
        if not mask.any():
            continue
        score = probability * float(logits[mask].sigmoid().mean())
        if score > CONFIDENCE:
            rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
            box = np.array([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1])
            found.setdefault(classes[number], []).append(Found(box, mask.cpu().numpy(), score))
    return found


def cut_out(picture: Image.Image, found: Found) -> Image.Image:
    """The object on grey, cropped to its box."""
    grey = Image.new("RGB", picture.size, GREY)
    return Image.composite(picture.convert("RGB"), grey, Image.fromarray(found.mask)).crop(tuple(found.box.tolist()))


def load(detector: str, clip: str, tasks: Mapping[str, str], device: torch.device) -> GenEval:
    """Folders or hub ids; `tasks` as the class says.

    Raises:
        LpoError: if a model is missing, or a task asks for what it cannot see.
    """
    model = from_pretrained(Mask2FormerForUniversalSegmentation, detector, dtype=torch.float32)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": SHORTER, "longest_edge": LONGER}, size_divisor=32)
    pair, pixels = load_pair(clip, clip, device)
    geneval = GenEval(model.requires_grad_(False).eval().to(device), processor, pair, pixels, tasks)
    for task in tasks.values():
        try:
            check_task(task, geneval.classes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LpoError(f"no task of GenEval: {error!r}", task, "fix that line of evaluate.prompts_file") from error
    return geneval
