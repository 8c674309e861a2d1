"""The step-aware preference model: SPO's reward (arXiv 2406.04314), a CLIP with time that looks at the decoded x_0.

    S(p, x_t, t) = exp(logit_scale) <I / |I|, T / |T|>
    x_0 = the policy's guided prediction at (x_t, t), decoded to a picture
    I = W_v CLIP(picture; t),  every LayerNorm of the vision layers LN(h) becomes LN(h) (1 + scale(t)) + shift(t)
    T = W_t CLIP(p)

scale and shift are linear in an MLP of the sinusoidal embedding of t and start at zero, so that the untrained model is
the CLIP it starts from. It costs a guided pass of the denoiser and a decode a candidate, which the latent reward model
saves.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.families.parts import without_origin
from lpo.scorers import embedded

TIME_WIDTH = 256
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # of all CLIPs
PLAIN = [0.5, 0.5, 0.5]  # pictures in [-1, 1], as the small scorers read them


class StepPreferenceModel(nn.Module):
    """A CLIP, what makes it see t, and the model (`backbone`, no part of its weights) that predicts and decodes x_0."""

    space = "pixel"

    def __init__(
        self, backbone: Family, clip: CLIPModel, tokenizer: CLIPTokenizer, mean: list[float], std: list[float],
        guidance_scale: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.clip, self.tokenizer = backbone, clip, without_origin(tokenizer)
        self.mean, self.std, self.guidance_scale = mean, std, guidance_scale
        self.transition = backbone.transition(1.0)
        width = clip.config.vision_config.hidden_size
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, TIME_WIDTH))
        layers = len(clip.vision_model.encoder.layers)
        self.modulation = nn.ModuleList(nn.Linear(TIME_WIDTH, 4 * width) for _ in range(layers))
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)
        self.to(backbone.device)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        with torch.no_grad():
            return self.encode_tokens(self.backbone.tokenize(prompts), prompts)

    def encode_tokens(self, ids: torch.Tensor, captions: list[str]) -> Conditioning:
        """What the denoiser reads, of its own token ids (B, L), and as `pooled` the CLIP's T / |T| of the captions."""
        words = self.tokenizer(
            captions, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.backbone.device)  # fmt: skip
        text = self.clip.text_projection(self.clip.text_model(words).pooler_output)
        return Conditioning(self.backbone.encode_tokens(ids).tensors, F.normalize(text, dim=1))

    def trained(self, trainable: str) -> list[nn.Parameter]:
        """What a training changes: "full" all of it, "frozen" the projections, the scale and what sees t."""
        if trainable == "full":
            return list(self.parameters())
        modules = [self.time, self.modulation, self.clip.visual_projection, self.clip.text_projection]
        return [*(p for module in modules for p in module.parameters()), self.clip.logit_scale]

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """S for noisy latents (B, C, h, w) at t (B,) under B prompts: (B,) float32. Gradients reach this model only."""
        images = self.embed(self.pictures(latents, t, conditioning, null), t)
        return self.clip.logit_scale.exp().float() * (images * conditioning.pooled.float()).sum(1)

    @torch.no_grad()
    def pictures(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """x_0 as the backbone predicts it, decoded: (B, 3, H, W) in [-1, 1]."""
        prediction = self.backbone.guided(latents, t, conditioning, null, self.guidance_scale)
        x_0, _ = self.transition.pred_x0_eps(prediction, latents, t)
        return self.backbone.decode(x_0.to(self.backbone.dtype))

    def embed(self, pictures: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """I / |I| of pictures (B, 3, H, W) in [-1, 1] at t (B,): (B, D)."""
        vision = self.clip.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(self.normalized(pictures)))
        time = self.time(get_timestep_embedding(t, TIME_WIDTH))
        for layer, modulation in zip(vision.encoder.layers, self.modulation, strict=True):
            shift_1, scale_1, shift_2, scale_2 = modulation(time)[:, None].chunk(4, dim=2)
            seen = layer.layer_norm1(hidden) * (1 + scale_1) + shift_1
            hidden = hidden + layer.self_attn(hidden_states=seen, attention_mask=None)[0]
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden) * (1 + scale_2) + shift_2)
        pooled = vision.post_layernorm(hidden[:, 0])
        return F.normalize(self.clip.visual_projection(pooled), dim=1)

    def normalized(self, pictures: torch.Tensor) -> torch.Tensor:
        """Resized to what the CLIP reads, and with its mean and standard deviation taken out."""
        size = self.clip.config.vision_config.image_size
        pictures = (pictures.float() + 1) / 2
        if pictures.shape[2:] != (size, size):
            pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pictures - mean) / std

    def save(self, folder: Path) -> None:
        """Write safetensors, configurations and the CLIP's tokenizer; `load` reads them."""
        self.clip.config.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        config = {"kind": "spm", "mean": self.mean, "std": self.std, "guidance_scale": self.guidance_scale}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


def start(path: str, backbone: Family, guidance_scale: float) -> StepPreferenceModel:
    """An untrained, frozen model on the CLIP in `path`: a folder of small scorers, or a CLIPModel's folder or hub id.

    Raises LpoError where there is neither.
    """
    if (Path(path) / "scorers.safetensors").exists():
        scorers = embedded.load(Path(path))
        model = StepPreferenceModel(backbone, scorers.clip, scorers.tokenizer, PLAIN, PLAIN, guidance_scale)
        return model.requires_grad_(False)
    try:
        clip, tokenizer = CLIPModel.from_pretrained(path), CLIPTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise LpoError(f"no CLIP here: {error}", path, "mend spm.clip") from error
    model = StepPreferenceModel(backbone, clip.float(), tokenizer, CLIP_MEAN, CLIP_STD, guidance_scale)
    return model.requires_grad_(False)


def load(folder: Path, backbone: Family) -> StepPreferenceModel:
    """Load what `save` wrote, frozen; `backbone` predicts and decodes. Raises LpoError where files are missing."""
    try:
        config = json.loads((folder / "config.json").read_text())
        clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        weights = load_file(folder / "model.safetensors")
        model = StepPreferenceModel(backbone, clip, tokenizer, config["mean"], config["std"], config["guidance_scale"])
    except (OSError, KeyError, ValueError) as error:
        raise LpoError(f"no step-aware preference model here: {error}", str(folder), "run `lpo spm`") from error
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
