"""Model cards: Markdown with the YAML front matter that model hubs read.

    model_card(params, metrics)     beside the LoRA: by the stage tune without figures, by the stage report with them
    reward_card(params, metrics)    beside the latent reward model

Source of the keys: the model card metadata specification of the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lpo.format import flat, percent, percents, plain, points, signed, title
from lpo.report import people_words, snippets

Json = Mapping[str, Any]
AXES = ("overall", "alignment", "aesthetics")

METHODS = {  # of tune.method: its name, and what it does
    "lpo": (
        "latent preference optimization",
        "A reward model that reads noisy latents ranked several candidates at every sampling step. The adapter learned "
        "to make the better ones more likely (LPO, arXiv 2502.01051).",
    ),
    "spo": (
        "step-by-step preference optimization",
        "A reward model ranked several candidates at every sampling step. The adapter learned to make the better ones "
        "more likely (SPO, arXiv 2406.04314).",
    ),
    "grpo": (
        "step-wise group relative policy optimization",
        "A reward model scored a group of candidates at every sampling step. The adapter learned to raise or lower the "
        "likelihood of each by its advantage over the group (step-wise GRPO, arXiv 2502.01051, appendix B).",
    ),
    "mixgrpo": (
        "MixGRPO",
        "A reward model scored a group of candidates at every step of a window that slid along the sampler. The "
        "adapter learned to raise or lower the likelihood of each by its advantage (MixGRPO, arXiv 2507.21802).",
    ),
    "dense_grpo": (
        "group relative policy optimization with dense rewards",
        "A reward model scored a group of candidates at every sampling step. The adapter learned to raise or lower the "
        "likelihood of each by what its step added to the score (DenseGRPO, arXiv 2601.20218).",
    ),
    "diffusion_dpo": (
        "Diffusion-DPO",
        "The adapter learned from stored pairs to denoise the chosen image better than the rejected one "
        "(Diffusion-DPO, arXiv 2311.12908).",
    ),
    "smpo": (
        "smoothed preference optimization",
        "The adapter learned from stored pairs to denoise the chosen image better than the rejected one, as far as "
        "three scores agree that it is better (SmPO, arXiv 2506.02698).",
    ),
    "kto": (
        "Diffusion-KTO",
        "The adapter learned from single images that people liked or disliked (Diffusion-KTO, arXiv 2404.04465).",
    ),
    "dgpo": (
        "direct group preference optimization",
        "A reward model that reads noisy latents scored finished latents in groups of one prompt, and the adapter "
        "learned to denoise the better part of a group better than the worse part (DGPO, arXiv 2510.08425).",
    ),
    "nft": (
        "Diffusion-NFT",
        "A reward model that reads noisy latents scored finished latents in groups of one prompt, and the adapter "
        "learned to denoise towards the better ones and away from the worse ones (Diffusion-NFT, arXiv 2509.16117).",
    ),
}


def model_card(params: Json, metrics: Mapping[str, Json]) -> str:
    """The card of the LoRA.

    Args:
        params: the sections of params.yaml as plain dicts. Without `evaluate` in metrics, the sampler settings are all
            that is read of the section evaluate.
        metrics: stage -> the content of metrics/STAGE.json.
    """
    evaluate = metrics.get("evaluate")
    name, what = METHODS[params["tune"]["method"]]
    base, setting = params["model"]["path"], params["evaluate"]
    blocks = [
        _front(_metadata(params, evaluate)),
        f"# LoRA for {_code(base)}, tuned with {name}",
        f"A LoRA adapter for a latent diffusion model. {what}",
        "## Use",
        "Run this in the project's folder. Elsewhere, replace `data/tuned` by the folder of this file.",
        _python(snippets.draw(params)),
        f"{_sampler(setting)} are the settings of the evaluation. `lpo generate` uses them too."
        + (_NO_ETA if params["model"]["family"] not in snippets.WITH_DDIM and setting["eta"] else ""),
        "## Results",
        _results(params, evaluate),
        *(["## What people said", _people(metrics["people"])] if "people" in metrics else []),
        "## Training",
        _training(params, metrics),
        "## Data",
        _data(params, metrics.get("filter")),
        "## Limitations",
        _limitations(params),
    ]
    return "\n\n".join(blocks) + "\n"


_NO_ETA = (
    " The pipeline of diffusers samples this model without noise (eta 0), so its images differ from the evaluated ones."
)


def reward_card(params: Json, metrics: Json) -> str:
    """The card of the latent reward model. metrics: the content of metrics/reward.json."""
    config, accuracy = params["reward"], metrics["accuracy"]
    base = config["base"] or params["model"]["path"]
    front = {
        "base_model": str(base),
        "library_name": "diffusers",
        "tags": ["reward-model", "preference-optimization", "diffusers", "lpo"],
    }
    rows = [
        [f"{row['t_low']} to {row['t_high']}", percent(row["value"]), percents(row), plain(row["pairs"])]
        for row in accuracy["by_timestep"]
    ]
    trained = f"Loaded from {_code(config['pretrained'])}, not trained here."
    if not config["pretrained"]:
        trained = f"Trained for {plain(metrics['steps'])} steps."
    blocks = [
        _front(front),
        f"# Latent reward model on {_code(base)}",
        "It scores a noisy latent for a prompt at a timestep. A higher score means that people are more likely to "
        "prefer the image. It consists of the first half of a denoiser, two projections and a scale (LPO, arXiv "
        "2502.01051, section 3.2), and serves every model with the same latent space. Compare scores only for the same "
        "prompt and the same timestep.",
        "## Use",
        "Run this in the project's folder. Elsewhere, replace `data/reward` by the folder of this file.",
        _python(snippets.score(params)),
        "## Accuracy on held-out pairs",
        f"The reward model ranks {percent(accuracy['mean'])} of {plain(metrics['test_pairs'])} held-out pairs "
        "correctly, averaged over timesteps.",
        _table(["timesteps", "accuracy", "95% interval", "pairs"], rows),
        "## Training",
        trained,
        _table(["parameter", "value"], [[_code(name), value] for name, value in flat(config, "reward")]),
    ]
    return "\n\n".join(blocks) + "\n"


def _metadata(params: Json, evaluate: Json | None) -> dict[str, Any]:
    front: dict[str, Any] = {
        "base_model": str(params["model"]["path"]),
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "lora", "preference-optimization", "lpo"],
    }
    if evaluate is not None:
        figures = [
            {"type": f"win_rate_{axis}", "name": f"win rate over the base, {axis} (95% interval {percents(row)})",
             "value": row["value"]}
            for axis, row in evaluate["win_rate"].items()
        ]  # fmt: skip
        source = str(params["dataset"]["source"])
        dataset = {"name": f"held-out prompts ({source})", "type": source}
        result = {"task": {"type": "text-to-image"}, "dataset": dataset, "metrics": figures}
        front["model-index"] = [{"name": "lpo-lora", "results": [result]}]
    return front


def _sampler(setting: Json) -> str:
    return (
        f"Guidance scale {plain(setting['guidance_scale'])}, {setting['num_inference_steps']} steps and eta "
        f"{plain(setting['eta'])}"
    )


def _results(params: Json, evaluate: Json | None) -> str:
    if evaluate is None:
        return "Not evaluated yet. `dvc repro` evaluates the model; data/report/MODEL_CARD.md then has the figures."
    setting = params["evaluate"]
    against = {
        "win_rate": plain(setting["guidance_scale"]),
        "win_rate_default_cfg": plain(setting["base_guidance_scale"]),
    }
    if setting["base_guidance_scale"] == setting["guidance_scale"]:
        del against["win_rate_default_cfg"]
    rows = [
        [axis, scale, percent(row["value"]), percents(row), percent(row["ties"]), plain(row["prompts"])]
        for name, scale in against.items()
        for axis, row in ((axis, evaluate.get(name, {}).get(axis)) for axis in AXES)
        if row is not None
    ]
    parts = [
        f"{_sampler(setting)}. Both models draw the same held-out prompts from the same noise. A tie counts as half a "
        "win. Intervals are 95% bootstrap intervals over prompts.",
        _table(["win rate on", "guidance scale of the base", "value", "95% interval", "ties", "prompts"], rows),
    ]
    if "judges" in evaluate:
        rows = [
            [title(name), plain(row["base"]), plain(row["tuned"]), signed(row["difference"]),
             f"{signed(row['low'])} to {signed(row['high'])}", percent(row["win_rate"]["value"])]
            for name, row in evaluate["judges"].items()
        ]  # fmt: skip
        if "judge" in evaluate:
            parts.append(f"The overall win rate is by {title(evaluate['judge'])}.")
        parts.append(_table(["judge", "base", "tuned", "change", "95% interval", "win rate"], rows))
    if "all_correct" in evaluate:
        row = evaluate["all_correct"]
        parts.append(
            f"All-correct rate (every detail of the prompt is right): {percent(row['base'])} before, "
            f"{percent(row['tuned'])} after, a change of {points(row['difference'])} points "
            f"({points(row['low'])} to {points(row['high'])})."
        )
    return "\n\n".join(parts)


def _people(said: Json) -> str:
    wins, strengths = (
        [[_code(name), *rest] for name, *rest in rows(said)] for rows in (people_words.wins, people_words.strengths)
    )
    parts = [people_words.who(said), people_words.WINS_NOTE, _table(people_words.WINS, wins)]
    if strengths:
        parts += [people_words.STRENGTHS_NOTE, _table(people_words.STRENGTHS, strengths)]
    return "\n\n".join(parts)


def _training(params: Json, metrics: Mapping[str, Json]) -> str:
    said = []
    if "tune" in metrics:
        counts = [f"{plain(metrics['tune'][name])} {name}" for name in ("prompts", "pairs") if name in metrics["tune"]]
        said.append(f"Trained on {' and '.join(counts)} in {plain(metrics['tune']['updates'])} optimizer updates.")
    if "reward" in metrics:
        accuracy = percent(metrics["reward"]["accuracy"]["mean"])
        said.append(f"The reward model ranks {accuracy} of held-out pairs correctly, averaged over timesteps.")
    rows = [[_code(name), value] for name, value in flat(params["tune"], "tune") + [("seed", plain(params["seed"]))]]
    return "\n\n".join([*said, _table(["parameter", "value"], rows)])


def _data(params: Json, counts: Json | None) -> str:
    source = params["dataset"]["source"]
    words = f"Preference pairs of the source {_code(source)}."
    if source == "simulated":
        words = (
            "Preference pairs labeled by simulated annotators: a Bradley-Terry model on the utility of a judge, with "
            "flipped labels and ties."
        )
    words += f" Filtered for multi-preference consistency (MPCF), strategy {_code(params['filter']['strategy'])}"
    if counts is None:
        return words + "."
    train = counts["by_split"]["train"]
    return words + (
        f": of {plain(train['input'])} training pairs, {plain(train['kept'])} were kept, {plain(train['dropped'])} "
        f"dropped, and {plain(train['quarantined'])} quarantined for violating the data contract."
    )


def _limitations(params: Json) -> str:
    limits = [
        "The reward model reads the latents of one autoencoder. It cannot score models with another one.",
        "The filter inherits the biases of its three scorers.",
        "Training for too long raises the reward without improving the images, and makes them less diverse.",
    ]
    if params["dataset"]["source"] == "simulated":
        limits.insert(0, "The pairs are simulated and the judge is a program: their figures say nothing about people.")
    return "\n".join(f"- {limit}" for limit in limits)


def _front(metadata: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---"


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(name: Any) -> str:
    """As inline code that the name cannot leave."""
    return "`" + str(name).replace("`", "'").replace("\n", " ") + "`"
