from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, TCDScheduler

from lpo.config import SamplerSettings
from lpo.families import sd
from lpo.images import to_tensor, to_uint8
from lpo.sampling.generate import generate, sample

SETTINGS = SamplerSettings(3, 3.0, 1.0, 1)
PROMPTS = ["a cat", "two dogs at night", "a star on grass"]


def test_a_picture_depends_on_its_seed_alone(tiny):
    together = sample(tiny, PROMPTS, [5, 6, 7], SETTINGS)
    alone = sample(tiny, PROMPTS[1:2], [6], SETTINGS)
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-4)
    other = sample(tiny, PROMPTS[1:2], [8], SETTINGS)
    assert not torch.allclose(alone, other, atol=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_draws_what_the_pipeline_draws(tiny, tiny_base, eta):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "guidance_scale": 4.0, "eta": eta, "output_type": "latent"}
    generator = torch.Generator().manual_seed(11)
    theirs = pipe(PROMPTS[0], height=32, width=32, generator=generator, **arguments).images
    ours = sample(tiny, PROMPTS[:1], [11], SamplerSettings(5, 4.0, eta, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "eta"), [(LCMScheduler, 1.0), (TCDScheduler, 0.3)])
def test_it_draws_what_the_pipeline_of_few_steps_draws(tiny_base, kind, eta):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 4, "guidance_scale": 1.0, "eta": eta, "output_type": "latent"}
    theirs = pipe(PROMPTS[0], height=32, width=32, generator=torch.Generator().manual_seed(11), **arguments).images
    name = {LCMScheduler: "lcm", TCDScheduler: "tcd"}[kind]
    few = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, sampler=name)
    ours = sample(few, PROMPTS[:1], [11], SamplerSettings(4, 1.0, eta, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_batches_do_not_change_the_pictures(tiny):
    seeds = list(range(5))
    prompts = (PROMPTS * 2)[:5]
    one, two = (generate(tiny, prompts, seeds, SamplerSettings(2, 3.0, 1.0, size), "") for size in (5, 2))
    assert one.shape == (5, 32, 32, 3) and one.dtype == np.uint8
    assert np.abs(one.astype(int) - two).max() <= 1


def test_the_adapter_is_off_outside_of_its_timesteps(tiny):
    """Three steps from 667, 334 and 1: the first with the adapter, the others by the base, also inside `reference`."""
    weights = tiny.add_lora(2, 0)
    for weight in weights:
        weight.data.fill_(0.05)
    settings = replace(SETTINGS, eta=0.0)

    def drawn(on: tuple[int, int] | None) -> torch.Tensor:
        return sample(tiny, PROMPTS[:1], [3], replace(settings, adapter_timesteps=on))

    with tiny.reference():
        base, still_base = drawn(None), drawn((500, 1000))
    tuned = drawn(None)
    assert torch.equal(base, still_base) and torch.equal(drawn((0, 1000)), tuned) and torch.equal(drawn((2, 300)), base)
    transition, (starts, ends) = tiny.transition(0.0), tiny.steps(3)
    x = torch.randn(tiny.latent_shape, generator=torch.Generator().manual_seed(3))[None]
    with torch.no_grad():
        for i, (t, s) in enumerate(zip(starts[:, None], ends[:, None], strict=True)):
            with tiny.reference() if i > 0 else nullcontext():
                prediction = tiny.guided(x, t, tiny.encode_prompts(PROMPTS[:1]), tiny.null(), 3.0)
            x, _ = transition.mean_std(prediction, x, t, s)
    assert torch.equal(drawn((500, 1000)), x) and not torch.allclose(x, tuned) and not torch.allclose(x, base)
    assert torch.equal(drawn(None), tuned)  # it is on again


def test_bytes_survive_the_round_trip():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_tensor(pictures)), pictures)
