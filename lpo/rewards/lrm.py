"""The latent reward model (LPO paper, section 3.2; figures and names in docs/decisions.md).

    S(p, x_t) = exp(logit_scale) <V / |V|, T / |T|>
    T = W_t f_eos(p)                                        (B, D)
    V = W_v [V_down ; V_enh]                                (B, D)
    V_enh = V_mid(null) + gs (V_mid(p) - V_mid(null))       visual feature enhancement, gs = 1 switches it off

V_down and V_mid are spatial means inside a denoiser's down and mid blocks at the noisy latent x_t. Cosine and scale
are computed in float32 (at a score of 25, fp16 resolves 0.016 only).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.families.sd import SD
from lpo.families.unet import drop_up_blocks

INITIAL_LOGIT_SCALE = 2.6592  # ln(1 / 0.07), as CLIP


class LatentRewardModel(nn.Module):
    """A backbone (a family without VAE and up blocks) with two projections and a scale.

    features: "multi_scale" reads down blocks and mid block, "mid" the mid block only.
    """

    space = "latent"

    def __init__(self, backbone: SD, embedding_dim: int, guidance_scale: float, features: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.unet, self.text_encoder = backbone.unet, backbone.text_encoder
        self.guidance_scale, self.features = guidance_scale, features
        with torch.no_grad():  # widths are probed, never typed in
            conditioning = backbone.encode_prompts([""])
            zero = torch.zeros(1, *backbone.latent_shape, device=backbone.device, dtype=backbone.dtype)
            down, mid = backbone.features(zero, torch.zeros(1, device=backbone.device, dtype=torch.long), conditioning)
        width = mid.shape[1] + (sum(d.shape[1] for d in down) if features == "multi_scale" else 0)
        self.visual_projection = nn.Linear(width, embedding_dim, bias=False, device=backbone.device)
        self.text_projection = nn.Linear(
            conditioning.pooled.shape[1], embedding_dim, bias=False, device=backbone.device
        )
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE, device=backbone.device))
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        nn.init.normal_(self.text_projection.weight, std=1 / math.sqrt(conditioning.pooled.shape[1]))

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        return self.backbone.encode_prompts(prompts)

    def encode_tokens(self, ids: torch.Tensor, captions: list[str]) -> Conditioning:
        """Conditioning of stored token ids (B, L), with gradients; `captions` are for rewards with other tokens."""
        return self.backbone.encode_tokens(ids)

    def trained(self, trainable: str) -> list[nn.Parameter]:
        """What a training changes: "full" all of it, "frozen" the projections and the scale."""
        modules = [self.visual_projection, self.text_projection]
        if trainable == "full":
            modules += [self.unet, self.text_encoder]
        return [*(p for module in modules for p in module.parameters()), self.logit_scale]

    def visual(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """V before its norm, (B, D) float32. `null` is the empty prompt, B = 1."""
        down, mid = self.backbone.features(latents, t, conditioning)
        if self.guidance_scale != 1.0:
            _, unconditional = self.backbone.features(latents, t, null.expand(len(latents)))
            mid = unconditional + self.guidance_scale * (mid - unconditional)
        parts = [*down, mid] if self.features == "multi_scale" else [mid]
        return self.visual_projection(torch.cat(parts, dim=1).float())

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """S for latents (B, C, h, w) at timesteps t (B,) under B prompts: (B,) float32."""
        visual = F.normalize(self.visual(latents, t, conditioning, null), dim=1)
        text = F.normalize(self.text_projection(conditioning.pooled.float()), dim=1)
        return self.logit_scale.exp() * (visual * text).sum(1)

    def save(self, folder: Path) -> None:
        """Write safetensors and configurations; `load` reads them. Weights are stored in the backbone's dtype."""
        self.unet.save_config(folder / "unet")
        self.text_encoder.config.save_pretrained(folder / "text_encoder")
        self.backbone.tokenizer.save_pretrained(folder / "tokenizer")
        self.backbone.scheduler.save_pretrained(folder / "scheduler")
        config = {
            "embedding_dim": self.visual_projection.out_features,
            "guidance_scale": self.guidance_scale,
            "features": self.features,
            "family": "sd",
            "scaling_factor": self.backbone.scaling_factor,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> LatentRewardModel:
    """Load what `save` wrote, frozen. Raises LpoError where files are missing."""
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors", device=str(device))
    except (OSError, KeyError, ValueError) as error:
        raise LpoError(f"no latent reward model here: {error}", str(folder), "run `lpo lrm`") from error
    unet = drop_up_blocks(UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")))
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    backbone = SD(
        unet=unet.to(device, dtype), text_encoder=text_encoder.to(device, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"), vae=None,
        scaling_factor=config["scaling_factor"], device=device, dtype=dtype,
    )  # fmt: skip
    model = LatentRewardModel(backbone, config["embedding_dim"], config["guidance_scale"], config["features"])
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
