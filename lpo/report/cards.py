"""The model card beside a LoRA: markdown with the YAML front matter that model hubs read.

Written twice: by the stage tune, before anything was evaluated, and by the stage report, with figures.
Source of the keys: the model card metadata specification of the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lpo.format import flat, percent, percents, plain, points, signed, title

Json = Mapping[str, Any]
AXES = ("overall", "alignment", "aesthetics")


METHODS = {  # of tune.method: its name, and what it did
    "lpo": (
        "latent preference optimisation",
        "A reward model that reads noisy latents ranked several candidates of every sampling step, and the adapter "
        "learned to make the better ones likelier (LPO, arXiv 2502.01051).",
    ),
    "spo": (
        "step-by-step preference optimisation",
        "A reward model ranked several candidates of every sampling step, and the adapter learned to make the better "
        "ones likelier (SPO, arXiv 2406.04314).",
    ),
    "grpo": (
        "step-wise group relative policy optimisation",
        "A reward model scored several candidates of every sampling step, and the adapter learned to make each as much "
        "likelier as it is better than its group (step-wise GRPO, arXiv 2502.01051, appendix B).",
    ),
    "diffusion_dpo": (
        "Diffusion-DPO",
        "The adapter learned from stored pairs to denoise the preferred picture better than the other one "
        "(Diffusion-DPO, arXiv 2311.12908).",
    ),
}


def model_card(params: Json, metrics: Mapping[str, Json]) -> str:
    """Markdown. params: the sections of params.yaml as plain dicts; metrics: stage -> what metrics/STAGE.json holds.

    Without `evaluate` the card says that nothing was measured yet, and reads no parameter of evaluate or report.
    """
    evaluate = metrics.get("evaluate")
    blocks = [
        f"---\n{yaml.safe_dump(_front_matter(params, evaluate), sort_keys=False, allow_unicode=True)}---",
        f"# LoRA of {_code(params['model']['path'])}, tuned by {METHODS[params['tune']['method']][0]}",
        f"A LoRA adapter for a latent diffusion model. {METHODS[params['tune']['method']][1]}",
        "## Use",
        _usage(params),
        "## Result",
        _result(params, evaluate),
        "## Method",
        _method(params, metrics),
        "## Data",
        _data(params, metrics.get("filter")),
        "## Limits",
        _limits(params),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(params: Json, evaluate: Json | None) -> dict[str, Any]:
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


def _usage(params: Json) -> str:
    return (
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(params['model']['path'])!r})\n"
        'pipe.load_lora_weights("FOLDER OF THIS FILE")\n'
        f"image = pipe(PROMPT, num_inference_steps={params['tune']['num_inference_steps']}, "
        f"guidance_scale={params['tune']['guidance_scale']}).images[0]\n```"
    )


def _result(params: Json, evaluate: Json | None) -> str:
    if evaluate is None:
        return "Not evaluated here: the stage `evaluate` measures it, and the report's card holds the figures."
    setting = params["evaluate"]
    against = {
        "win_rate": f"base, CFG {plain(setting['guidance_scale'])}",
        "win_rate_default_cfg": f"base, CFG {plain(setting['base_guidance_scale'])}",
    }
    if setting["base_guidance_scale"] == setting["guidance_scale"]:
        del against["win_rate_default_cfg"]
    rows = [
        [axis, words, percent(row["value"]), percents(row), percent(row["ties"]), plain(row["prompts"])]
        for name, words in against.items()
        for axis, row in ((axis, evaluate.get(name, {}).get(axis)) for axis in AXES)
        if row is not None
    ]
    parts = [
        f"Tuned at CFG {plain(setting['guidance_scale'])}, {setting['num_inference_steps']} steps, same prompts and "
        "noise on both sides, prompts held out from every training. A tie counts half; intervals are 95%, by "
        "bootstrap over prompts.",
        _table(["verdict on", "against", "win rate", "95% interval", "ties", "prompts"], rows),
    ]
    if "judges" in evaluate:
        rows = [
            [title(name), plain(row["base"]), plain(row["tuned"]), signed(row["difference"]),
             f"{signed(row['low'])} to {signed(row['high'])}", percent(row["win_rate"]["value"])]
            for name, row in evaluate["judges"].items()
        ]  # fmt: skip
        if "judge" in evaluate:
            parts.append(f"The verdict overall is that of {title(evaluate['judge'])}.")
        parts.append(_table(["judge", "base", "tuned", "change", "95% interval", "win rate"], rows))
    if "all_correct" in evaluate:
        row = evaluate["all_correct"]
        parts.append(
            f"All details of the prompt right: {percent(row['base'])} before, {percent(row['tuned'])} after "
            f"({points(row['difference'])} points, {points(row['low'])} to {points(row['high'])})."
        )
    return "\n\n".join(parts)


def _method(params: Json, metrics: Mapping[str, Json]) -> str:
    found = []
    if "tune" in metrics:
        known = [name for name in ("prompts", "pairs", "updates") if name in metrics["tune"]]
        found.append("Trained on " + ", ".join(f"{plain(metrics['tune'][name])} {name}" for name in known) + ".")
    if "reward" in metrics:
        found.append(
            f"The reward model ranks {percent(metrics['reward']['accuracy']['mean'])} of held-out pairs right "
            "(mean over timesteps)."
        )
    rows = [[_code(name), value] for name, value in flat(params["tune"], "tune") + [("seed", plain(params["seed"]))]]
    return "\n\n".join([*found, _table(["parameter", "value"], rows)])


def _data(params: Json, counts: Json | None) -> str:
    simulated = "Preference pairs with simulated annotators (Bradley-Terry on a judged utility, with flips and ties)."
    source = params["dataset"]["source"]
    words = simulated if source == "simulated" else f"Preference pairs of the source {_code(source)}."
    words += f" Filtered by multi-preference consistency, strategy {_code(params['filter']['strategy'])}"
    if counts is None:
        return words + "."
    return words + (
        f": {plain(counts['kept'])} of {plain(counts['input'])} pairs kept, {plain(counts['dropped'])} dropped, "
        f"{plain(counts['quarantined'])} quarantined for breaking the data contract."
    )


def _limits(params: Json) -> str:
    limits = [
        "The reward model sees latents of one autoencoder; it cannot rate models with another.",
        "The filter inherits the biases of its three scorers.",
        "Long training climbs the reward and no longer the pictures, and narrows what is drawn.",
    ]
    if params["dataset"]["source"] == "simulated":
        limits.insert(0, "Preferences are simulated and the judge is a program: nothing here says what people prefer.")
    return "\n".join(f"- {limit}" for limit in limits)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(name: Any) -> str:
    """As inline code that the name cannot leave."""
    return "`" + str(name).replace("`", "'").replace("\n", " ") + "`"
