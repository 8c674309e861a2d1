"""Inside the loop of a rollout the host never waits for the device: it runs ahead of a GPU.

The models lie on the meta device, which has no numbers: whoever reads one (item, a branch, nonzero, a copy to the host)
gets an error. A copy to the device makes the host wait too, unless it says `non_blocking`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lpo import random
from lpo.config import load_params
from lpo.families import load_family
from lpo.rewards import spm
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.policy import finished, rollout
from lpo.train.policy.methods import METHODS

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
PROMPTS = ["a cat", "two dogs at night", "a star on grass"]


class Blocking(TorchDispatchMode):
    """Collects copies between host and device that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COPIES:
            source = args[1] if func is COPIES[1] else args[0]
            target = args[0].device if func is COPIES[1] else torch.device(kwargs.get("device") or source.device)
            if source.device.type != target.type and not kwargs.get("non_blocking", False):
                self.found.append(f"{func} of {tuple(source.shape)} from {source.device.type} to {target.type}")
        return func(*args, **kwargs)


CASES = {
    "lpo": {},
    "lpo published": {"reward_timestep": "current", "threshold.schedule": "sigma", "continue_from": "best"},
    "lpo look_ahead": {"reward_timestep": "look_ahead"},
    "lpo sdxl": {},
    "lpo sd3": {"timestep_range": (0, 2000)},
    "spo": {},
    "mixgrpo": {},
    "dense_grpo": {},
}


def models(name: str, request: pytest.FixtureRequest, repository: Any) -> tuple[Any, Any, Any]:
    """Policy, reward and the section tune of a case, without weights."""
    params = load_params(repository / "params.yaml")
    method, *more = name.split(maxsplit=1)
    family_name = more[0] if more and more[0] in ("sdxl", "sd3") else "sd"
    path = request.getfixturevalue("tiny_base" if family_name == "sd" else f"tiny_{family_name}_base")
    model = replace(params.model, family=family_name, path=str(path))
    changes = dict(CASES.get(name, {}))
    schedule = changes.pop("threshold.schedule", "quantile")
    tune = replace(
        params.tune, method=method, num_inference_steps=4, micro_batch_size=2, lora_rank=2,
        threshold=replace(params.tune.threshold, schedule=schedule), **{"guidance_scale": 3.0} | changes,
    )  # fmt: skip
    tune = replace(tune, window=replace(tune.window, steps=2))
    family = load_family(model, device=META)
    family.words = load_family(model, device=torch.device("cpu")).words  # a model without weights has no tokenizers
    if method == "spo":
        reward = spm.start(str(repository / params.spm.clip), family, 1.0)
    else:
        layer = 1 if family_name == "sd3" else None
        backbone = load_family(model, reward=True, layer=layer, device=META)
        backbone.words = family.words
        reward = LatentRewardModel(backbone, 8, 7.5, "mid" if layer else "multi_scale")
    with META:
        family.add_lora(2, 0)
    return family, reward.requires_grad_(False), tune


@pytest.mark.parametrize("name", CASES)
def test_the_loop_of_a_rollout_waits_for_nothing(name, request, repository, monkeypatch):
    family, reward, tune = models(name, request, repository)
    blocking = Blocking()

    @contextmanager
    def away(*_):  # what lies inside of it is the loop
        with blocking:
            yield

    monkeypatch.setattr(rollout, "away", away)
    made, _ = rollout.explore(family, reward, METHODS[tune.method].select, PROMPTS, tune, random.generator(0, "test"))
    assert len(made.steps) > 0 and made.scores.device == META
    assert blocking.found == []


def test_finished_latents_are_drawn_without_waiting(request, repository):
    """Of NFT and DGPO alike. The noise levels are sent once, before the first step."""
    family, _, tune = models("nft", request, repository)
    tune, every = replace(tune, guidance_scale=1.0), torch.arange(len(PROMPTS))
    generators = random.of_prompts(random.generator(0, "test"), len(PROMPTS), every)
    text = family.encode_prompts(PROMPTS)[torch.arange(len(PROMPTS), device=META).repeat_interleave(4)]
    parts = rollout.consecutive(len(text), 4, len(text))
    with torch.no_grad(), Blocking() as blocking:
        x_0 = finished._sample(family, text, parts, tune, generators)
    assert x_0.device == META
    assert [copy.split(" of ")[1] for copy in blocking.found] == [f"{n} from cpu to meta" for n in ("(1000,)", "()")]
