import math

import pytest
import torch
from safetensors.torch import load_file

from lpo import random
from lpo.emoji.scenes import Prompt, sample_prompts, split_of
from lpo.emoji.sprites import NAMES
from lpo.train.pretrain.base import (
    NOTHING,
    near_misses,
    new_pipeline,
    sides,
    tokenize,
    train_unet,
    training_set,
    wrong_captions,
)


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
    prompts = sample_prompts("train", 50, random.numpy_generator(5, "scenes", 0))
    assert latents.shape == (50, 4, 8, 8)
    assert torch.equal(ids, tokenize(pipe.tokenizer, [prompt.caption for prompt in prompts]))
    assert placed.tolist() == [sides(prompt) for prompt in prompts]


def test_wrong_captions_are_near_misses_of_the_same_scenes_within_the_train_split():
    """No caption of the base's training puts objects together that are held out, not even a wrong one."""
    pipe = new_pipeline(0)
    right = sample_prompts("train", 200, random.numpy_generator(5, "scenes", 0))
    said = near_misses(right, 0.3, random.numpy_generator(5, "captions", 0))
    wrong = [one != other for one, other in zip(right, said, strict=True)]
    assert 0.2 < sum(wrong) / 200 < 0.4
    assert all(split_of(prompt) == "train" for prompt in said)
    assert near_misses(right, 0.0, random.numpy_generator(5, "captions", 0)) == right
    ids, placed = wrong_captions(pipe.tokenizer, 5, 200, 0.3)
    assert torch.equal(ids, tokenize(pipe.tokenizer, [prompt.caption for prompt in said]))
    assert placed.tolist() == [sides(prompt) for prompt in said]  # the head learns what the caption says


@pytest.mark.slow
def test_the_second_phase_teaches_the_text_encoder_what_stands_where(tmp_path):
    """The head that it trains on f_eos tells the places of its captions; at its start it guesses among all names."""
    pipe = new_pipeline(0)
    data = training_set(pipe, 5, 60)
    train_unet(pipe, data, tmp_path, 5, 25, 8, 2e-3, 0.5, 25, "layout")
    (file,) = tmp_path.glob("step-*.safetensors")
    tensors = load_file(file)
    head = torch.nn.Linear(128, 4 * (NOTHING + 1))
    head.load_state_dict({name: tensors[f"head/{name}"] for name in ("weight", "bias")})
    told = (data[2] != NOTHING).any(1)
    with torch.no_grad():
        guess = head(pipe.text_encoder(data[1][told]).pooler_output).view(-1, NOTHING + 1)
    loss = torch.nn.functional.cross_entropy(guess, data[2][told].flatten())
    assert loss < 0.75 * math.log(NOTHING + 1)
