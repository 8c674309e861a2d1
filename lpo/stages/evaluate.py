"""evaluate: base, CFG-matched base, tuned model on held-out prompts, same seeds -> data/evaluation, metrics.

With a model in models/promoted, that one too. Finished pictures are kept in .checkpoints/evaluate/, by what they depend
on: a killed run goes on at the model where it stopped, and only a new model is drawn again.

Judged by the embedded world's own judge; with others (evaluate.judges) the work is that of lpo/stages/judged.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo import resume
from lpo.config import Params
from lpo.data.simulated import png
from lpo.emoji.oracle import verdict_frame
from lpo.errors import LpoError
from lpo.evaluate.metrics import evaluate_results
from lpo.evaluate.reward_judge import RewardJudge
from lpo.families import load_family
from lpo.families.family import Family
from lpo.files import folder_hash, key_of, replacing, write_json, write_parquet
from lpo.registry.ledger import PROMOTED, WEIGHTS, name_of
from lpo.rewards import lrm
from lpo.sampling.generate import generate, to_tensor
from lpo.scorers import embedded

SEED = 42_000_000  # of the first picture; the seeds of the pairs and of validation lie elsewhere
ENCODED_AT_ONCE = 250


@dataclass(frozen=True)
class Jury:
    """What looks at every picture beside the judge. `family` encodes pictures for the reward."""

    family: Family
    scorers: embedded.Scorers
    reward: lrm.LatentRewardModel


def run(params: Params) -> None:
    """Write every picture with its verdicts, then win rates with intervals.

    A promoted model that is the tuned one itself is named in the metrics and not compared.
    """
    config = params.evaluate
    if config.judges != ("emoji",):
        from lpo.stages import judged  # its imports take seconds, which the embedded world need not wait for

        judged.run(params)
        return
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
    reward = lrm.load(Path("data/reward"), family.device, family.dtype, family)
    jury = Jury(family, embedded.load(Path(params.score.scorers)), reward)
    frames: list[pd.DataFrame] = []
    drawn = Drawn(params, prompts, seeds, family)

    def draw(name: str, guidance_scale: float, lora: Path | None = None) -> None:
        pictures = drawn.pictures(name, guidance_scale, lora)
        frames.append(assess(pictures, table, seeds, jury, params).assign(model=name))

    draw("base_matched", config.guidance_scale)
    if config.base_guidance_scale == config.guidance_scale:
        frames.append(frames[0].assign(model="base"))
    else:
        draw("base", config.base_guidance_scale)
    draw("tuned", config.guidance_scale, Path("data/tuned"))
    promoted = name_of(PROMOTED) if (PROMOTED / WEIGHTS).exists() else None
    if promoted and promoted != name_of(Path("data/tuned")):
        draw("promoted", config.guidance_scale, PROMOTED)
    drawn.forget_others()
    results = pd.concat(frames, ignore_index=True)
    write_parquet("data/evaluation/results.parquet", results)
    metrics = evaluate_results(results, config.bootstrap, params.seed)
    if promoted:
        metrics["promoted"] = {"name": promoted} | metrics.get("promoted", {})
    rates = metrics["win_rate"]
    write_json("plots/win_rates.json", [{"axis": axis, **rate} for axis, rate in rates.items()])
    write_json("metrics/evaluate.json", metrics)


class Drawn:
    """The pictures of each model, drawn or as they were drawn before with the same prompts, settings and code."""

    def __init__(self, params: Params, prompts: list[str], seeds: list[int], family: Family) -> None:
        self.params, self.prompts, self.seeds = params, prompts, seeds
        self.family, config = family, params.evaluate
        identity = {
            "model": asdict(params.model), "base": folder_hash(params.model.path), "device": str(family.device),
            "num_inference_steps": config.num_inference_steps, "eta": config.eta, "batch_size": config.batch_size,
            "prompts": prompts, "seeds": seeds,
        }  # fmt: skip
        self.folder = resume.folder("evaluate", identity)
        self.used: set[Path] = set()

    def pictures(self, label: str, guidance_scale: float, lora: Path | None) -> np.ndarray:
        """(N, H, W, 3) uint8 of the base, or with the LoRA of a folder."""
        key = key_of([guidance_scale, name_of(lora) if lora else None])
        path = self.folder / f"{key}.npy"
        self.used.add(path)
        if not path.exists():
            family, config = self.family, self.params.evaluate
            if lora:  # a model of its own: the adapter of one never meets that of another
                family = load_family(self.params.model)
                family.load_lora(lora)
            settings = replace(config.sampler, guidance_scale=guidance_scale)
            pictures = generate(family, self.prompts, self.seeds, settings, label)
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, pictures)
        return np.load(path, allow_pickle=False)

    def forget_others(self) -> None:
        """Remove the pictures of models that this run did not ask for."""
        for path in set(self.folder.glob("*.npy")) - self.used:
            path.unlink()


def assess(pictures: np.ndarray, table: pd.DataFrame, seeds: list[int], jury: Jury, params: Params) -> pd.DataFrame:
    """Verdicts of the judge, the scorers and the reward on pictures (N, H, W, 3) of the rows of `table`."""
    prompts = table["prompt"].tolist()
    verdicts = verdict_frame(pictures, prompts, params.dataset.utility_weights)
    scores = {k: v.numpy() for k, v in jury.scorers.score(to_tensor(pictures), prompts).items()}
    return pd.DataFrame(
        {
            "prompt": prompts,
            "category": table["category"].tolist(),
            "seed": seeds,
            "png": [png(picture) for picture in pictures],
            **{name: verdicts[name] for name in ("all_correct", "alignment", "aesthetic", "utility")},
            "clip": scores["clip"],
            "vqa": scores["vqa"],
            "aesthetic_score": scores["aesthetic"],
            "lrm": reward_scores(pictures, prompts, jury),
        }
    )


def reward_scores(pictures: np.ndarray, prompts: list[str], jury: Jury) -> np.ndarray:
    reward = RewardJudge(jury.family, jury.reward)
    parts = [slice(start, start + ENCODED_AT_ONCE) for start in range(0, len(pictures), ENCODED_AT_ONCE)]
    return torch.cat([reward.score_pixels(pictures[part], prompts[part]) for part in parts]).numpy()
