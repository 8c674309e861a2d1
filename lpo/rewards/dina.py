"""DiNa-LRM (arXiv 2602.11146): the published latent reward of Stable Diffusion 3.5 medium, as a reward here.

    S(p, x_t, t) = mean over the queries of w . Q'' + b
    tokens of a stream = W [P_l ((1 + gamma_l(t)) h_l + beta_l(t) + e_l) side by side], h_l the states after block l
    Q' = Q + attention(Q, picture) + attention(Q, text), the values weighted by a gate of their token
    Q'' = FFN(Q' + attention(Q', picture))

h_l are the states of both streams after blocks 4, 8 and 12 of 24, with the reward's LoRA switched on; later blocks are
not run. gamma and beta read the transformer's own embedding of t and of the pooled prompt. The tokens of several
noisy copies of one latent can stand side by side in front of the queries: the authors' ensemble (`together`).

What is published (liuhuohuo/DiNa-LRM-SD35M-12layers, and any checkpoint of HKUST-C4G/diffusion-rm):
    config.json                                       sections model and training, JSON or YAML
    checkpoint/backbone_lora/adapter_config.json      a LoRA of PEFT; none where model.freeze_backbone is true
    checkpoint/backbone_lora/adapter_model.safetensors
    checkpoint/rm_head.pt                             the head's state dict
The LoRA is attached to the model that is tuned, which must be SD3.5 medium: policy, reference and reward are three
states of one set of weights. The head is computed in float32 (the authors: bfloat16).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lpo import hub
from lpo.errors import LpoError
from lpo.families import lora, lora_files
from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Reached, Transformer
from lpo.families.family import Family
from lpo.families.latent_space import LatentSpace
from lpo.rewards.dina_head import Head, States

ADAPTER = "dina"  # the name of the LoRA in the transformer
CONFIG, HEAD = "config.json", "checkpoint/rm_head.pt"
LORA = ("checkpoint/backbone_lora/adapter_config.json", "checkpoint/backbone_lora/adapter_model.safetensors")
BASE = "stabilityai/stable-diffusion-3.5-medium"
REMEDY = "take the published folder, such as liuhuohuo/DiNa-LRM-SD35M-12layers"


class DinaReward(nn.Module):
    """The head, and the model (`backbone`, no part of its weights) whose states it reads."""

    space = "latent"

    def __init__(self, backbone: Transformer, head: Head, config: dict[str, Any], files: dict[str, Path]) -> None:
        super().__init__()
        self.backbone, self.head, self.config, self.files = backbone, head, config, files
        self.layers = {"visual": config["model"]["visual_head_idx"], "text": config["model"]["text_head_idx"]}

    @property
    def latent_space(self) -> LatentSpace:
        """That of the backbone."""
        return self.backbone.codec.space()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        return self.backbone.encode_prompts(prompts)

    def encode_tokens(self, ids: torch.Tensor, captions: list[str]) -> Conditioning:
        """Conditioning of token ids (B, L) of the backbone."""
        return self.backbone.encode_tokens(ids)

    def trained(self, trainable: str) -> list[nn.Parameter]:
        """The head. It is loaded to be used, so `reward.trainable` changes nothing."""
        return list(self.head.parameters())

    def states(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> States:
        """What the head reads of noisy latents (B, C, h, w) at t (B,), in float32."""
        net: Any = self.backbone.denoiser
        found: dict[Any, Any] = {}
        arguments = self.backbone.arguments(latents.to(self.backbone.dtype), t, conditioning)
        depth = max(max(layers, default=0) for layers in self.layers.values())
        switched = lora.switched_to(net, ADAPTER) if LORA[0] in self.files else lora.switched_off(net)
        with switched, _kept(net.time_text_embed, found, "t"), ExitStack() as hooks:
            for layer in {*self.layers["visual"], *self.layers["text"]}:
                hooks.enter_context(_kept(net.transformer_blocks[layer - 1], found, layer))
            try:
                with self.backbone.stopped(net, depth):
                    net.forward(**arguments)
            except Reached:
                pass
        visual = [found[layer][1].float() for layer in self.layers["visual"]]  # a block returns text, picture
        return States(visual, [found[layer][0].float() for layer in self.layers["text"]], found["t"].float())

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """S for noisy latents (B, C, h, w) at t (B,) under B prompts: (B,) float32. `null` is not read."""
        return self.together([latents], [t], conditioning)

    def together(
        self, latents: Sequence[torch.Tensor], times: Sequence[torch.Tensor], conditioning: Conditioning
    ) -> torch.Tensor:
        """One score (B,) of several noisy copies of the same B latents, each at its own timesteps (B,)."""
        seen = [self.states(x, t, conditioning) for x, t in zip(latents, times, strict=True)]
        with torch.autocast(self.backbone.device.type, enabled=False):
            found: torch.Tensor = self.head(seen)
        return found

    def save(self, folder: Path) -> None:
        """Write the published layout, which `load` reads."""
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
        for name, file in self.files.items():
            if name != CONFIG:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)


def config_of(source: str) -> dict[str, Any] | None:
    """config.json of a folder or hub id if it is DiNa-LRM's; None for another model, or where there is none."""
    try:
        file = hub.find(source, CONFIG)
        config = None if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    except (LpoError, yaml.YAMLError, UnicodeDecodeError):
        return None
    model = config.get("model") if isinstance(config, dict) else None
    return config if isinstance(model, dict) and "visual_head_idx" in model else None


def load(source: str, family: Family) -> DinaReward:
    """The reward in a folder or hub id, frozen, its LoRA attached to `family` beside the adapters that are there.

    Raises:
        LpoError: if files are missing, if `family` isn't the model that it was trained on, if the checkpoint is of a
            kind that isn't read, or if a weight of the files is left over or missing.
    """
    config = config_of(source)
    if config is None:
        raise LpoError("this is no DiNa-LRM", source, REMEDY)
    model = config["model"]
    _check(model, family, source)
    assert isinstance(family, Transformer)
    names = [CONFIG, HEAD, *(() if model.get("freeze_backbone") else LORA)]
    files = {name: hub.file_of(source, name) for name in names}
    net = family.denoiser
    head = Head(net.inner_dim, len(model["visual_head_idx"]), len(model["text_head_idx"]), **_sizes(model))
    hub.fill(head, hub.weights_of(files[HEAD]), f"{source}/{HEAD}")
    if LORA[1] in files:
        updates = lora_files.updates(files[LORA[1]].parent, family)
        lora.put_beside(net, updates[family.part], ADAPTER)
    return DinaReward(family, head.to(family.device), config, files).requires_grad_(False).eval()


def _check(model: dict[str, Any], family: Family, source: str) -> None:
    if family.name != "sd3":
        what = f"DiNa-LRM reads the states of {model.get('backbone_model_id', BASE)}, and the model is {family.name}"
        raise LpoError(what, source, f"tune {BASE} (model.family: sd3), or name another reward")
    layers = [*model["visual_head_idx"], *model["text_head_idx"]]
    wrong = {
        "model.use_logistic": bool(model.get("use_logistic")),
        "model.use_lora: false": not model.get("freeze_backbone") and not model.get("use_lora"),
        "model.reward_head.out_dim": model.get("reward_head", {}).get("out_dim", 1) != 1,
        "model.visual_head_idx": not model["visual_head_idx"] or min(layers) < 1,
    }
    if any(wrong.values()):
        said = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise LpoError(f"a checkpoint with this setting isn't read: {said}", f"{source}/{CONFIG}", REMEDY)
    if ADAPTER in getattr(family.denoiser, "peft_config", {}):
        raise LpoError("the model carries a DiNa-LRM already", source, "name it once in tune.rewards")


def _sizes(model: dict[str, Any]) -> dict[str, Any]:
    own = model.get("reward_head", {})
    return {
        "width": own.get("width", -1), "queries": own.get("num_queries", 4), "heads": own.get("num_attn_heads", 8),
        "projected": own.get("use_proj_in", False),
    }  # fmt: skip


@contextmanager
def _kept(module: nn.Module, found: dict[Any, Any], name: Any) -> Iterator[None]:
    """Inside, what the module returns is kept under `name`."""
    hook = module.register_forward_hook(lambda _, __, output: found.__setitem__(name, output))
    try:
        yield
    finally:
        hook.remove()
