"""The model card beside a latent reward model: what it is, how it is loaded, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lpo.format import flat, percent, plain

Json = Mapping[str, Any]


def reward_card(params: Json, metrics: Json) -> str:
    """Markdown. params: the sections of params.yaml as plain dicts; metrics: what metrics/reward.json holds."""
    base = params["reward"]["base"] or params["model"]["path"]
    front = {
        "base_model": str(base),
        "library_name": "diffusers",
        "tags": ["reward-model", "preference-optimization", "diffusers", "lpo"],
    }
    accuracy = metrics["accuracy"]
    rows = [
        f"| {row['t_low']} to {row['t_high']} | {percent(row['value'])} | {percent(row['low'])} to "
        f"{percent(row['high'])} | {plain(row['pairs'])} |"
        for row in accuracy["by_timestep"]
    ]
    taken = params["reward"]["pretrained"]
    settings = [f"| `{name}` | {value} |" for name, value in flat(params["reward"], "reward")]
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# Latent reward model of {base}",
        "It scores a noisy latent picture under a prompt: the higher, the likelier people are to prefer it. The first "
        "half of a denoiser with two projections and a scale (LPO, arXiv 2502.01051, section 3.2). It serves every "
        "model with the same latent space.",
        "## Use",
        "```python\nfrom pathlib import Path\n\nimport torch\n\nfrom lpo.rewards import lrm\n\n"
        'model = lrm.load(Path("FOLDER OF THIS FILE"), torch.device("cpu"))\n'
        'text, null = model.encode_prompts([PROMPT]), model.encode_prompts([""])\n'
        "score = model.score(latents, timesteps, text, null)  # latents (1, C, h, w) at timesteps (1,)\n```",
        "## Accuracy on held-out pairs",
        f"Mean over timesteps {percent(accuracy['mean'])}, over {plain(metrics['test_pairs'])} pairs.",
        "\n".join(["| timesteps | right | 95% interval | pairs |", "| --- | --- | --- | --- |", *rows]),
        "## Training",
        f"Taken as it is from `{taken}`." if taken else f"{plain(metrics['steps'])} steps.",
        "\n".join(["| parameter | value |", "| --- | --- |", *settings]),
    ]
    return "\n\n".join(blocks) + "\n"
