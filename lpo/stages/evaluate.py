"""evaluate: base, CFG-matched base, tuned model on held-out prompts, same seeds -> data/evaluation, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo.config import Params
from lpo.data.simulated import png
from lpo.emoji.judge import judge
from lpo.emoji.scenes import parse
from lpo.errors import LpoError
from lpo.evaluate.generation import generate, to_tensor
from lpo.evaluate.metrics import evaluate_results
from lpo.families import load_family
from lpo.families.family import Family
from lpo.files import write_json, write_parquet
from lpo.rewards import lrm, small

SEED = 42_000_000  # of the first picture; the seeds of the pairs and of validation lie elsewhere
ENCODED_AT_ONCE = 250


@dataclass(frozen=True)
class Jury:
    """What looks at every picture beside the judge. `family` encodes pictures for the reward."""

    family: Family
    scorers: small.Scorers
    reward: lrm.LatentRewardModel


def run(params: Params) -> None:
    """Write every picture with its verdicts, then win rates with intervals."""
    config = params.evaluate
    table = pd.read_parquet("data/prompts.parquet").query("split == 'test'").head(config.prompts)
    if len(table) < config.prompts:
        raise LpoError(
            f"{config.prompts} test prompts are asked for, there are {len(table)}",
            "params.yaml: evaluate.prompts",
            "lower it, or raise dataset.test_prompts",
        )
    table = table.loc[table.index.repeat(config.images_per_prompt)]
    prompts = table["prompt"].tolist()
    seeds = list(range(SEED, SEED + len(prompts)))
    family = load_family(params.model)
    reward = lrm.load(Path("data/lrm"), family.device, family.dtype, family)
    jury = Jury(family, small.load(Path(params.score.scorers)), reward)
    frames: list[pd.DataFrame] = []

    def draw(name: str, guidance_scale: float) -> None:
        pictures = generate(
            family, prompts, seeds, config.num_inference_steps, guidance_scale, config.eta, config.batch_size, name
        )
        frames.append(assess(pictures, table, seeds, jury, params).assign(model=name))

    draw("base_matched", config.guidance_scale)
    if config.base_guidance_scale == config.guidance_scale:
        frames.append(frames[0].assign(model="base"))
    else:
        draw("base", config.base_guidance_scale)
    family.load_lora(Path("data/lpo"))
    draw("tuned", config.guidance_scale)
    results = pd.concat(frames, ignore_index=True)
    write_parquet("data/evaluation/results.parquet", results)
    metrics = evaluate_results(results, config.bootstrap, params.seed)
    rates = metrics["win_rate"]
    write_json("plots/win_rates.json", [{"axis": axis, **rate} for axis, rate in rates.items()])
    write_json("metrics/evaluate.json", metrics)


def assess(pictures: np.ndarray, table: pd.DataFrame, seeds: list[int], jury: Jury, params: Params) -> pd.DataFrame:
    """Verdicts of the judge, the scorers and the reward on pictures (N, H, W, 3) of the rows of `table`."""
    prompts = table["prompt"].tolist()
    verdicts = judge(pictures, [parse(prompt) for prompt in prompts])
    scores = {k: v.numpy() for k, v in jury.scorers.score(to_tensor(pictures), prompts).items()}
    weights = (params.dataset.alignment_weight, params.dataset.aesthetic_weight)
    return pd.DataFrame(
        {
            "prompt": prompts,
            "category": table["category"].tolist(),
            "seed": seeds,
            "png": [png(picture) for picture in pictures],
            "all_correct": [v.all_correct for v in verdicts],
            "alignment": [v.alignment for v in verdicts],
            "aesthetic": [v.aesthetic for v in verdicts],
            "utility": [v.utility(*weights) for v in verdicts],
            "clip": scores["clip"],
            "vqa": scores["vqa"],
            "aesthetic_score": scores["aesthetic"],
            "lrm": reward_scores(pictures, prompts, jury),
        }
    )


@torch.no_grad()
def reward_scores(pictures: np.ndarray, prompts: list[str], jury: Jury, t: int = 1) -> np.ndarray:
    """The latent reward model's own scores of finished pictures: to be read for reward hacking, never as a result."""
    null, parts = jury.reward.encode_prompts([""]), []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        part = slice(start, start + ENCODED_AT_ONCE)
        latents = jury.family.scale(jury.family.encode_images(to_tensor(pictures[part])).chunk(2, dim=1)[0])
        steps = torch.full((len(latents),), t, device=jury.family.device)
        parts.append(jury.reward.score(latents, steps, jury.reward.encode_prompts(prompts[part]), null).cpu())
    return torch.cat(parts).numpy()
