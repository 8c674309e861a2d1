"""The step-aware preference model: SPO's reward (arXiv 2406.04314), a CLIP with time that looks at the decoded x_0.

    S(p, x_t, t) = exp(logit_scale) <I / |I|, T / |T|>
    x_0 = the policy's guided prediction at (x_t, t), decoded to a picture; x_t itself where t = 0
    I = W_v final(CLIP(picture; t)),   T = W_t CLIP(p)

Time enters the vision tower of width d as in DiT (arXiv 2212.09748). With c = MLP([cos, sin](t)) of width d, every
layer has six vectors, linear in SiLU(c), and the pooled output two:

    h <- h + gate_1 attention(LN_1(h) (1 + scale_1) + shift_1),  h <- h + gate_2 mlp(LN_2(h) (1 + scale_2) + shift_2)
    final(h) = LN(h) (1 + scale) + shift

Gates start at one, scales and shifts at zero, so that the untrained model is the CLIP that it starts from. A score
costs a guided pass of the denoiser and a decode a candidate, which the latent reward model saves. The released
checkpoints (SPO-Diffusion-Models/Step-Aware_Preference_Models) are read by `published`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lpo import hub
from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.families.parts import split_source, without_origin
from lpo.scorers import embedded

TIME_WIDTH = 256
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # of all CLIPs
PLAIN = [0.5, 0.5, 0.5]  # pictures in [-1, 1], as the small scorers read them


class StepPreferenceModel(nn.Module):
    """A CLIP, what makes it see t, and the model (`backbone`, no part of its weights) that predicts and decodes x_0."""

    space = "pixel"
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self, backbone: Family, clip: CLIPModel, tokenizer: CLIPTokenizer, mean: list[float], std: list[float],
        guidance_scale: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.clip, self.tokenizer = backbone, clip, without_origin(tokenizer)
        self.mean, self.std, self.guidance_scale = mean, std, guidance_scale
        self.transition = backbone.transition(1.0).to(backbone.device)
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):  # no part of the weights
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        width = clip.config.vision_config.hidden_size
        embedding = [nn.Linear(TIME_WIDTH, width), nn.Linear(width, width)]
        modulation = [nn.Linear(width, 6 * width) for _ in clip.vision_model.encoder.layers]
        self.time = nn.Sequential(embedding[0], nn.SiLU(), embedding[1])
        self.modulation, self.final = nn.ModuleList(modulation), nn.Linear(width, 2 * width)
        for layer in embedding:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for parameter in [*self.modulation.parameters(), *self.final.parameters()]:
            nn.init.zeros_(parameter)
        for layer in modulation:
            for gate in (2, 5):
                nn.init.ones_(layer.bias[gate * width : (gate + 1) * width])
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
        modules = [self.time, self.modulation, self.final, self.clip.visual_projection, self.clip.text_projection]
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
        """x_0 as the backbone predicts it, where t > 0, decoded: (B, 3, H, W), about in [-1, 1]."""
        prediction = self.backbone.guided(latents, t, conditioning, null, self.guidance_scale)
        x_0, _ = self.transition.pred_x0_eps(prediction, latents, t)
        finished = (t == 0).view(-1, 1, 1, 1)
        return self.backbone.codec.decode(torch.where(finished, latents, x_0.to(latents.dtype)), clamp=False)

    def embed(self, pictures: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """I / |I| of pictures (B, 3, H, W) in [-1, 1] at t (B,): (B, D)."""
        vision = self.clip.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(self.normalized(pictures)))
        time = F.silu(self.time(get_timestep_embedding(t, TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)))
        for layer, modulation in zip(vision.encoder.layers, self.modulation, strict=True):
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(time)[:, None].chunk(6, dim=2)
            seen = layer.layer_norm1(hidden) * (1 + scale_1) + shift_1
            hidden = hidden + gate_1 * layer.self_attn(hidden_states=seen, attention_mask=None)[0]
            hidden = hidden + gate_2 * layer.mlp(layer.layer_norm2(hidden) * (1 + scale_2) + shift_2)
        shift, scale = self.final(time).chunk(2, dim=1)
        pooled = vision.post_layernorm(hidden[:, 0]) * (1 + scale) + shift
        return F.normalize(self.clip.visual_projection(pooled), dim=1)

    def normalized(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the CLIP reads: the shorter side resized (bicubic, not antialiased), the middle, less mean, over std."""
        size = self.clip.config.vision_config.image_size
        pictures = pictures.float()
        if pictures.shape[2:] != (size, size):
            height, width = (int(side * size / min(pictures.shape[2:]) + 0.5) for side in pictures.shape[2:])
            pictures = F.interpolate(pictures, (height, width), mode="bicubic", align_corners=False)
            top, left = (round((side - size) / 2) for side in (height, width))
            pictures = pictures[:, :, top : top + size, left : left + size]
        pictures = (pictures / 2 + 0.5).clamp(0, 1)
        return (pictures - self.pixel_mean) / self.pixel_std

    def save(self, folder: Path) -> None:
        """Write safetensors, configurations and the CLIP's tokenizer; `load` reads them."""
        self.clip.config.save_pretrained(folder / "clip")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        config = {"kind": "spm", "mean": self.mean, "std": self.std, "guidance_scale": self.guidance_scale}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


def start(path: str, backbone: Family, guidance_scale: float, tokenizer: str | None = None) -> StepPreferenceModel:
    """An untrained, frozen model on the CLIP in `path`: a folder of small scorers, or a CLIPModel's folder or hub id.

    tokenizer: where the CLIP's tokenizer lies; None: in `path`. Raises LpoError where one of them is missing.
    """
    if (Path(path) / "scorers.safetensors").exists():
        scorers = embedded.load(Path(path))
        model = StepPreferenceModel(backbone, scorers.clip, scorers.tokenizer, PLAIN, PLAIN, guidance_scale)
        return model.requires_grad_(False)
    clip, words = hub.from_pretrained(CLIPModel, path), hub.tokenizer_of(CLIPTokenizer, tokenizer or path)
    model = StepPreferenceModel(backbone, clip.float(), words, CLIP_MEAN, CLIP_STD, guidance_scale)
    return model.requires_grad_(False)


def published(
    file: str, clip: str, backbone: Family, guidance_scale: float, tokenizer: str | None = None
) -> StepPreferenceModel:
    """A released checkpoint, frozen: `file` is a path, or owner/name/FILE of the hub.

    clip: the CLIPModel whose sizes it has (yuvalkirstain/PickScore_v1); only its configuration is read.

    Raises:
        LpoError: if something is missing, if the file would run code, or if it holds other weights.
    """
    root, name = split_source(file)
    path = hub.file_of(root, name) if name else Path(file)
    if not path.is_file():
        raise LpoError("there is no such file", file, "name a checkpoint of SPO's preference model, or owner/name/FILE")
    words = hub.tokenizer_of(CLIPTokenizer, tokenizer or clip)
    config = hub.from_pretrained(CLIPConfig, clip)
    model = StepPreferenceModel(backbone, CLIPModel(config), words, CLIP_MEAN, CLIP_STD, guidance_scale)
    held = hub.weights_of(path)
    weights = {ours(key): value for key, value in held.items() if not key.endswith("position_ids")}
    return hub.fill(model, weights, file)


def ours(key: str) -> str:
    """A weight's name in a released checkpoint -> its name here."""
    key = key.removeprefix("model.")
    key = re.sub(r"^vision_model\.encoder\.layers\.(\d+)\.adaLN_modulation\.1\.", r"modulation.\1.", key)
    key = key.replace("vision_model.adaLN_modulation.1.", "final.").replace("t_embedder.mlp.", "time.")
    return key if key.startswith(("modulation.", "final.", "time.")) else f"clip.{key}"


def load(folder: Path, backbone: Family) -> StepPreferenceModel:
    """Load what `save` wrote, frozen; `backbone` predicts and decodes. Raises LpoError where files are missing."""
    try:
        config = json.loads((folder / "config.json").read_text())
        clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        weights = load_file(folder / "model.safetensors")
        model = StepPreferenceModel(backbone, clip, tokenizer, config["mean"], config["std"], config["guidance_scale"])
        model.load_state_dict(weights)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise LpoError(f"no step-aware preference model here: {error}", str(folder), "run `lpo spm`") from error
    return model.requires_grad_(False).eval()
