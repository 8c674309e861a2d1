"""Consistency distillation on the untrained embedded base, small and for a few steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lpo.config import load_params
from lpo.diffusion.schedule import ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM
from lpo.train.pretrain import distill as module
from lpo.train.pretrain.base import new_pipeline, tokenize
from lpo.train.pretrain.distill import C, distill, huber


def test_huber_by_hand():
    """d = 0 costs nothing; d = 3 c / 4 costs c / 4; a large d costs |d| - c."""
    assert huber(torch.zeros(3)).item() == 0
    assert huber(torch.tensor([0.75 * C])).item() == pytest.approx(0.25 * C, rel=1e-3)
    assert huber(torch.tensor([-2.0])).item() == pytest.approx(2 - C, rel=1e-5)


@torch.no_grad()
def inconsistency(pipe, unet, latents, text) -> float:
    """Mean distance of x0_hat at t and at the next lower timestep of the teacher's trajectory."""
    ddim = DDIM.from_scheduler(pipe.scheduler, 0.0)
    scheduler = module.LCMScheduler(original_inference_steps=module.GRID)
    t, s = ddim_timesteps(scheduler, 50)[:40], previous_timesteps(scheduler, 50)[:40]
    x_0 = latents[:1].expand(40, -1, -1, -1)
    x_t = ddim.add_noise(x_0, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1)), t)
    states = text[:1].expand(40, -1, -1)
    x_s, _ = ddim.mean_std(pipe.unet(x_t, t, states).sample, x_t, t, s)
    one, _ = ddim.pred_x0_eps(unet(x_t, t, states).sample, x_t, t)
    other, _ = ddim.pred_x0_eps(unet(x_s, s, states).sample, x_s, s)
    return float((one - other).abs().mean())


def test_the_student_becomes_consistent_and_resumes(tmp_path, repository):
    """Its x0_hat of neighbouring timesteps agree better than the teacher's; a run in two parts makes the same bytes."""
    pipe = new_pipeline(0)
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = tokenize(pipe.tokenizer, ["a cat", "two dogs"] * 4)
    config = replace(
        load_params(repository / "params.yaml").distill, steps=16, batch_size=4, learning_rate=1e-2, guidance_scale=1.0,
        ema_decay=0.5, checkpoint_every=8,
    )  # fmt: skip
    for name in ("straight", "parts"):
        (tmp_path / name).mkdir()
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
    before = inconsistency(pipe, pipe.unet, latents, text)
    straight = distill(pipe, latents, ids, config, tmp_path / "straight", 3)
    assert inconsistency(pipe, straight, latents, text) < 0.8 * before
    usual, saved = module.checkpoint.save_training, []

    def killed(*args):
        usual(*args)
        saved.append(args[1])
        if len(saved) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.checkpoint, "save_training", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(pipe, latents, ids, config, tmp_path / "parts", 3)
    parts = distill(pipe, latents, ids, config, tmp_path / "parts", 3)
    assert saved == [8]
    for (name, one), other in zip(straight.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
