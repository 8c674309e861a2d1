from dataclasses import replace

import torch

from lpo.emoji.scenes import Prompt, sample_prompts
from lpo.emoji.sprites import NAMES
from lpo.train.loop import numpy_rng
from lpo.train.pretrain import NOTHING, new_pipeline, sides, tokenize, train_unet, training_set


def named(prompt: Prompt) -> list[str]:
    return ["" if side == NOTHING else NAMES[side] for side in sides(prompt)]


def test_sides_are_left_right_top_and_bottom():
    assert named(Prompt(("cat", "dog"), relation="left of")) == ["cat", "dog", "", ""]
    assert named(Prompt(("cat", "dog"), relation="right of")) == ["dog", "cat", "", ""]
    assert named(Prompt(("cat", "dog"), relation="above")) == ["", "", "cat", "dog"]
    assert named(Prompt(("cat", "dog"), relation="below")) == ["", "", "dog", "cat"]
    assert named(Prompt(("cat", "dog"))) == [""] * 4


def test_the_training_set_is_what_its_captions_say():
    pipe = new_pipeline(0)
    latents, ids, placed = training_set(pipe, seed=5, scenes=50)
    prompts = sample_prompts("train", 50, numpy_rng(5, "scenes", 0))
    assert latents.shape == (50, 4, 8, 8)
    assert torch.equal(ids, tokenize(pipe.tokenizer, [prompt.caption for prompt in prompts]))
    assert placed.tolist() == [sides(prompt) for prompt in prompts]


def test_the_second_phase_tells_a_caption_from_its_mirror(tmp_path):
    """f_eos of "a left of b" and of "b left of a" move apart, in units of their length."""
    pipe = new_pipeline(0)
    prompts = [p for p in sample_prompts("train", 100, numpy_rng(0, "mirror")) if p.relation]
    captions = [[p.caption for p in prompts], [replace(p, objects=p.objects[::-1]).caption for p in prompts]]

    @torch.no_grad()
    def distance() -> float:
        one, other = (pipe.text_encoder(tokenize(pipe.tokenizer, side)).pooler_output for side in captions)
        return float((one - other).norm(dim=1).mean() / one.norm(dim=1).mean())

    before = distance()
    train_unet(pipe, training_set(pipe, 5, 100), tmp_path, 5, 25, 4, 2e-3, 0.5, 25, layout=True)
    assert distance() > 1.2 * before
