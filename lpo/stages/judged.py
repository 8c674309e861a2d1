"""evaluate with judges of real pictures: base and tuned model on the prompts of a file, same seeds -> data/evaluation.

The tuned model is `evaluate.tuned`: the base with a LoRA, ours or a published one, or with a published denoiser in the
place of its own. The latent reward model has its say where there is one.

Pictures and scores are made in parts under .checkpoints/evaluate/KEY, where KEY is a hash of the base, the prompts and
the sampler; each side has a folder there, and in it each judge. So a killed run goes on, a judge more draws nothing
again, and another LoRA draws and judges the tuned side only.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lpo import resume
from lpo.config import Params
from lpo.errors import LpoError
from lpo.evaluate.metrics import judged_results
from lpo.evaluate.prompt_files import read_prompts
from lpo.evaluate.reward_judge import RewardJudge
from lpo.evaluate.shards import collect, draw, judge_parts
from lpo.families import device_of, load_family, lora
from lpo.families.parts import split_source
from lpo.files import atomic_folder, file_hash, folder_hash, key_of, write_json, write_parquet
from lpo.hub import file_of
from lpo.rewards import lrm
from lpo.sampling.generate import generate
from lpo.scorers.judges import Judge, check_judges, load_judge, sources_of

PROMPTS, REWARD = Path("data/prompts.parquet"), Path("data/reward")
OUT = Path("data/evaluation")
SEED = 42_000_000  # of the first picture
SAMPLER = ("prompts", "images_per_prompt", "num_inference_steps", "eta", "batch_size")  # what decides a picture

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Draw, judge with one judge after another, write results and metrics.

    Raises:
        LpoError: before anything is drawn, if prompts, judges or the tuned model are missing.
    """
    config = params.evaluate
    table, left_out = prompts_of(params)
    tasks = {row.prompt: row.task for row in table.itertuples() if row.task is not None}
    check_judges(config.judges, params, tasks, len(table))
    adapter = lora_of(config.tuned)
    rows = table[["prompt", "category"]]
    rows = rows.loc[rows.index.repeat(config.images_per_prompt)].reset_index(drop=True)
    rows["seed"] = range(SEED, SEED + len(rows))

    identity = {
        "sampler": {name: getattr(config, name) for name in SAMPLER}, "model": asdict(params.model),
        "base": content(params.model.path), "rows": key_of(rows.to_dict("records")),
    }  # fmt: skip
    scales = {"base_matched": config.guidance_scale}
    if config.base_guidance_scale != config.guidance_scale:
        scales["base"] = config.base_guidance_scale
    scales["tuned"] = config.guidance_scale
    folder = resume.folder("evaluate", identity)
    parts = [
        part for name, scale in scales.items() for part in draw_side(folder, name, adapter, scale, rows, params)
    ]
    scores = {}
    for name, load, what in judges_of(params, tasks):
        scores[name] = judge_parts(f"{name}-{key_of(what)}", name, parts, config.judge_batch_size, load)
        gc.collect()  # the next one may need all the memory
        torch.cuda.empty_cache()
    results = collect(parts, scores)
    if "base" not in scales:
        same = results[results["model"] == "base_matched"].assign(model="base")
        results = pd.concat([results, same], ignore_index=True)
    metrics = judged_results(results, config.judges, config.bootstrap, params.seed)
    with atomic_folder(OUT) as out:
        write_parquet(out / "results.parquet", results)
        write_parquet(out / "left_out.parquet", left_out)
        for part in parts:
            (out / "pictures").mkdir(exist_ok=True)
            shutil.copyfile(part, out / "pictures" / part.name)
    write_json("plots/win_rates.json", [{"axis": name, **row["win_rate"]} for name, row in metrics["judges"].items()])
    write_json("metrics/evaluate.json", metrics | {"prompts_left_out": len(left_out)})


def prompts_of(params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(prompt, category, task) to draw, and what was left out of the file with its reason.

    Raises:
        LpoError: if there are fewer than evaluate.prompts.
    """
    config = params.evaluate
    known = pd.read_parquet(PROMPTS) if PROMPTS.exists() else pd.DataFrame({"prompt": [], "split": []})
    if config.prompts_file is None:
        if not PROMPTS.exists():
            raise LpoError("no prompts are named", "params.yaml: evaluate.prompts_file", "name a file of prompts")
        table = known.query("split == 'test'").assign(task=None)
        left_out = pd.DataFrame(columns=["prompt", "reason"], dtype=object)
    else:
        table, left_out = read_prompts(config.prompts_file, known.loc[known["split"] == "train", "prompt"])
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out["reason"].value_counts().items())
        log.warning("%d prompts are left out (%s): see data/evaluation/left_out.parquet", len(left_out), counts)
    if len(table) < config.prompts:
        raise LpoError(
            f"{config.prompts} prompts are asked for, there are {len(table)} ({len(left_out)} left out)",
            "params.yaml: evaluate.prompts",
            "lower it, or name a longer file",
        )
    return table.head(config.prompts).reset_index(drop=True), left_out


def draw_side(
    folder: Path, name: str, adapter: Path | None, scale: float, rows: pd.DataFrame, params: Params
) -> list[Path]:
    """The parts of one side at one guidance scale; its model is loaded if any is missing."""
    config = params.evaluate
    source = config.tuned if name == "tuned" else None
    loaded: list[Any] = []  # the model, once a picture is missing

    def picture(part: pd.DataFrame) -> Any:
        if not loaded:
            other = source is not None and adapter is None
            loaded.append(load_family(replace(params.model, denoiser=source) if other else params.model))
            if source is not None and adapter is not None:
                loaded[0].load_lora(adapter)
        settings = replace(config.sampler, guidance_scale=scale)
        return generate(loaded[0], part["prompt"].tolist(), part["seed"].tolist(), settings, "")

    mine = folder / f"{name}-{key_of({'scale': scale, 'tuned': source and content(source)})}"
    for old in set(folder.glob(f"{name}-*")) - {mine}:  # pictures of an earlier LoRA
        shutil.rmtree(old)
    return draw(mine, name, rows, config.batch_size, picture)


def lora_of(source: str) -> Path | None:
    """The LoRA that `evaluate.tuned` names, a folder or a file of ours or of the hub; None for a denoiser.

    Raises:
        LpoError: if it is neither.
    """
    if source.endswith(".safetensors"):
        return Path(source) if Path(source).exists() else file_of(*split_source(source))
    if (Path(source) / lora.FILE).exists():
        return Path(source)
    root, inside = split_source(source)
    file_of(root, f"{inside}/config.json".lstrip("/"))
    return None


def judges_of(
    params: Params, tasks: Mapping[str, str]
) -> list[tuple[str, Callable[[], Judge], dict[str, Any]]]:
    """(name, how it is loaded, what decides its scores) of each judge; the reward itself comes last, if it is here."""
    config, device = params.evaluate, device_of(params.model)
    found: list[tuple[str, Callable[[], Judge], dict[str, Any]]] = []
    for judge in config.judges:
        what: dict[str, Any] = {source: content(source) for source, _ in sources_of(judge, params)}
        if judge == "geneval":
            what["tasks"] = dict(tasks)
        found.append((judge, partial(load_judge, judge, params, tasks, device), what))

    def reward() -> Judge:
        family = load_family(params.model)
        return RewardJudge(family, lrm.load(REWARD, family.device, family.dtype, family))

    if (REWARD / "config.json").exists():
        found.append(("lrm", reward, {"lrm": content(str(REWARD))}))
    return found


def content(source: str) -> str:
    """What stands for a model in a key: the hash of a folder or file, the id of a hub repository."""
    path = Path(source)
    return folder_hash(path) if path.is_dir() else file_hash(path) if path.is_file() else source

