"""generate: a prompt, and perhaps a LoRA and a search by the reward -> a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lpo.config import Params, SamplerSettings
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.families.family import Family
from lpo.images import to_uint8
from lpo.outputs import output_file
from lpo.registry.ledger import folder_of
from lpo.rewards.load import load_reward
from lpo.sampling.generate import generate
from lpo.sampling.search import Search, search

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ENLARGED = 256  # small pictures are shown at least this large, like pixel art


def run(
    params: Params,
    prompt: str,
    lora: Path | None,
    out: Path,
    seed: int,
    guidance_scale: float | None,
    steps: int | None,
    candidates: int,
    trajectories: int,
    force: bool = False,
) -> str:
    """Write the picture `out`, and return what a search found and what it cost ("" without one).

    Args:
        lora: a folder, a file, or the name of a promoted model.
        force: replace a file that this command did not write.

    Raises:
        LpoError: if the prompt is empty or longer than the model reads, or something else is at `out`.
    """
    config, family = params.evaluate, load_family(params.model)
    length = len(family.tokenizer(prompt).input_ids)
    if not prompt.strip() or length > family.tokens:
        raise LpoError(
            f"the prompt has {length} tokens, the model reads 3 to {family.tokens}", "PROMPT", "change the prompt"
        )
    if lora is not None:
        family.load_lora(folder_of(lora))
    settings = replace(
        config.sampler, num_inference_steps=steps or config.num_inference_steps, batch_size=1,
        guidance_scale=config.guidance_scale if guidance_scale is None else guidance_scale,
    )  # fmt: skip
    if candidates > 1 or trajectories > 1:
        pixels, said = searched(family, params, prompt, seed, settings, candidates, trajectories)
    else:
        pixels, said = generate(family, [prompt], [seed], settings, "")[0], ""
    picture = Image.fromarray(pixels)
    if picture.width < ENLARGED:
        factor = ENLARGED // picture.width
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    with output_file(out, "lpo generate", force) as partial:
        picture.save(partial, FORMATS.get(out.suffix.lower(), "PNG"), quality=95)
    return said


def searched(
    family: Family, params: Params, prompt: str, seed: int, settings: SamplerSettings, candidates: int,
    trajectories: int,
) -> tuple[np.ndarray, str]:  # fmt: skip
    """The picture (H, W, 3) uint8 that the reward of `tune.reward` likes best, and a line about it."""
    how = Search(candidates, trajectories, params.reward.ensemble_timesteps, params.reward.ensemble_draws)
    reward = load_reward(Path(params.tune.reward), family)
    latents, scores, cost = search(family, reward, prompt, seed, settings, how)
    plain = settings.num_inference_steps * (1 if settings.guidance_scale == 1 else 2)
    said = (
        f"searched {candidates} candidates a step in {trajectories} trajectories: reward {scores.max():.3f} "
        f"(of all: {', '.join(f'{score:.3f}' for score in scores.tolist())}); {cost.denoiser} denoiser passes "
        f"(without search {plain}) and {cost.reward} reward passes in {cost.seconds:.2f} s"
    )
    return to_uint8(family.decode(latents))[0], said
