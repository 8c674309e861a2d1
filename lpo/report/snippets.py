"""The Python code that the cards and the report show. It runs as it stands in the project's folder.

A test executes what these functions return.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]
DTYPES = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}
DENOISERS = {  # model.family -> class
    "sd": "UNet2DConditionModel",
    "sdxl": "UNet2DConditionModel",
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
    "flux2_klein": "Flux2Transformer2DModel",
    "qwen_image": "QwenImageTransformer2DModel",
    "sana": "SanaTransformer2DModel",
    "z_image": "ZImageTransformer2DModel",
}
WITH_DDIM = ("sd", "sdxl")


def prompt(params: Json) -> str:
    """A prompt that the model can read: the embedded model knows the words of emoji scenes alone."""
    embedded = params["dataset"]["source"] == "simulated"
    return "a cat left of a taxi at night" if embedded else "a cat wearing a red scarf, watercolour"


def draw(params: Json) -> str:
    """Load the base and the adapter with diffusers, and draw one image as the stage evaluate does.

    The number format is given for all parts: without it a text encoder keeps that of its file.
    """
    model, setting = params["model"], params["evaluate"]
    classes, parts = ["DiffusionPipeline"], []
    ddim, denoiser = model["family"] in WITH_DDIM, DENOISERS[model["family"]]
    name = "unet" if ddim else "transformer"
    for part, kind, source in (("vae", "AutoencoderKL", model["vae"]), (name, denoiser, model["denoiser"])):
        if source is not None:
            classes.append(kind)
            parts.append(f"{part} = {kind}.from_pretrained({_place(source)}, torch_dtype=dtype)")
    own = [line.split(" ")[0] for line in parts]
    sources = [repr(model["path"]), "torch_dtype=dtype", *(f"{part}={part}" for part in own)]
    folder = Path(model["path"])
    if model["family"] == "sd3" and folder.is_dir() and not (folder / "text_encoder_3").is_dir():
        sources += ["text_encoder_3=None", "tokenizer_3=None"]  # saved without T5
    call = [
        repr(prompt(params)), f"num_inference_steps={setting['num_inference_steps']}",
        _guidance(model["family"], setting["guidance_scale"]),
    ]  # fmt: skip
    scheduler = []
    if ddim:  # a flow's pipeline has its own sampler, and no eta
        sampler = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}.get(model["scheduler"], "DDIMScheduler")
        turbo = ', timestep_spacing="trailing", set_alpha_to_one=True' if model["scheduler"] == "turbo" else ""
        classes.append(sampler)
        scheduler = [f"pipe.scheduler = {sampler}.from_config(pipe.scheduler.config{turbo})"]
        call.append(f"eta={setting['eta']!r}")
    switch = []
    if setting["adapter_timesteps"] is not None:
        steps = setting["num_inference_steps"] if ddim else None
        low, high = setting["adapter_timesteps"]
        switch = _switch(low, high, steps)
        call.append("callback_on_step_end=switch")
    if model["resolution"] is not None:
        call += [f"height={model['resolution']}", f"width={model['resolution']}"]
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {', '.join(sorted(classes))}",
            "",
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            f"dtype = {DTYPES[model['dtype']]}",
            *parts,
            f"pipe = DiffusionPipeline.from_pretrained({', '.join(sources)})",
            *scheduler,
            'pipe.load_lora_weights("data/tuned", weight_name="pytorch_lora_weights.safetensors")',
            *switch,
            "generator = torch.Generator().manual_seed(0)",
            f"image = pipe.to(device)({', '.join([*call, 'generator=generator'])}).images[0]",
            'image.save("image.png")',
        ]
    )


def _guidance(family: str, scale: float) -> str:
    """The scale as the family's pipeline takes it. That of Z-Image begins at 0, that of Qwen-Image has another name."""
    if family == "qwen_image":
        return f'true_cfg_scale={scale!r}, negative_prompt=" "'
    if family == "sana":
        return f"guidance_scale={scale!r}, complex_human_instruction=None"
    return f"guidance_scale={scale - 1 if family == 'z_image' else scale!r}"


def _switch(low: int, high: int, steps: int | None) -> list[str]:
    """A callback of diffusers that sets the adapter for the step that follows, and what sets it for the first one.

    steps: of DDIM; None for a flow, whose first step begins at 1000.
    """
    first = [f"pipe.scheduler.set_timesteps({steps})", "switch(pipe, -1, None, {})"]
    if steps is None:
        first = [] if low <= 1000 < high else ["pipe.disable_lora()"]
    return [
        "",
        "",
        f"def switch(pipe, step, t, kwargs):  # the adapter is off at timesteps outside of {low} to {high - 1}",
        "    following = pipe.scheduler.timesteps[min(step + 1, len(pipe.scheduler.timesteps) - 1)]",
        f"    pipe.enable_lora() if {low} <= following < {high} else pipe.disable_lora()",
        "    return kwargs",
        "",
        "",
        *first,
    ]


def score(params: Json) -> str:
    """Encode an image with the VAE of the base, and score its latents at one timestep."""
    adapter = params["reward"]["trainable"] == "adapter" and not params["reward"]["pretrained"]
    load = 'Path("data/reward"), torch.device("cpu")'
    if adapter:  # it is a change of the base's own denoiser
        load += ', family=load_family(load_params().model, device=torch.device("cpu"), dtype=torch.float32)'
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import torch",
            "from diffusers.image_processor import VaeImageProcessor",
            "from PIL import Image",
            "",
            "from lpo.config import load_params",
            f"from lpo.families import codec_of{', load_family' if adapter else ''}",
            "from lpo.rewards import lrm",
            "",
            f"reward = lrm.load({load})",
            "codec = codec_of(load_params().model)",
            "size = reward.backbone.pixels",
            'image = VaeImageProcessor().preprocess(Image.open("image.png").convert("RGB"), size, size)',
            "timesteps = torch.tensor([1])  # almost clean",
            "with torch.no_grad():",
            "    latents = codec.scale(codec.encode(image).chunk(2, dim=1)[0].float().cpu())",
            f'    text, null = reward.encode_prompts([{prompt(params)!r}]), reward.encode_prompts([""])',
            "    print(reward.score(latents, timesteps, text, null))",
        ]
    )


def _place(source: str) -> str:
    """The arguments of from_pretrained for a folder, a hub id, or a folder inside a hub repository."""
    owner_and_name, inside = source.split("/")[:2], source.split("/")[2:]
    if not inside or Path(source).exists() or source.startswith((".", "/")):
        return repr(source)
    return f"{'/'.join(owner_and_name)!r}, subfolder={'/'.join(inside)!r}"
