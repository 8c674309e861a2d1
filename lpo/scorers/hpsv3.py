"""HPSv3: Qwen2-VL-7B with a head that predicts a mean and a deviation of human preference.

    h = Qwen2-VL(system, picture, instruction with the prompt)_[<|Reward|>]     last hidden state, (3584,)
    mu, sigma = W_5 relu(W_3 relu(W_0 h))                                       3584 -> 1024 -> 16 -> 2
    HPSv3(x, c) = mu                                    about -1 (SD2) to 10 (FLUX.1 dev); sigma is not used

Pictures are resized (bicubic) to about 256 tiles of 28 x 28 pixels. The instruction is in hpsv3_prompt.txt. The model
runs in bfloat16 and the head in float32, as published. Pictures are scored one at a time, so that no padding has a say.
Every token has the position of a word. Qwen2-VL itself gives the tiles of a picture rows and columns; the published
forward hands over embeddings without the picture's grid, in training and in inference.
Source: Ma et al. 2025 (arXiv 2508.03789) and its released code; weights MizzenAI/HPSv3, HPSv3.safetensors; tokenizer
and configuration Qwen/Qwen2-VL-7B-Instruct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import nn
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from lpo.errors import LpoError
from lpo.hub import file_of, fill, from_pretrained, tokenizer_of, weights_of

WEIGHTS = "HPSv3.safetensors"
DTYPE = torch.bfloat16
REWARD = "<|Reward|>"  # the token whose hidden state is read; the published tokenizer gets it as its last one
PIXELS = 256 * 28 * 28  # of a picture, as exactly as its aspect ratio allows
PICTURE = "<|image_pad|>"
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
BETWEEN, AFTER = "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"  # Qwen2-VL's chat template
INSTRUCTION = Path(__file__).with_name("hpsv3_prompt.txt").read_text(encoding="utf-8")
LANGUAGE, VISION, HEAD, UNUSED = "language_model.", "visual.", "rm_head.", "lm_head."
REMEDY = "take HPSv3.safetensors of MizzenAI/HPSv3, and the configuration of Qwen/Qwen2-VL-7B-Instruct"


@dataclass(frozen=True)
class HPSv3:
    model: Qwen2VLModel
    head: nn.Sequential
    tokenizer: Qwen2Tokenizer
    pixels: Qwen2VLImageProcessorPil

    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32 of N pictures and their prompts: the mean."""
        return self.predict(pictures, prompts)[:, 0]

    @torch.no_grad()
    def predict(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N, 2) in float32: mu and the published head's second output, which training reads as sigma."""
        rows = zip(pictures, prompts, strict=True)
        return torch.stack([self._predict(picture, prompt) for picture, prompt in rows]).cpu()

    def _predict(self, picture: Image, prompt: str) -> torch.Tensor:
        device = self.model.device
        seen = self.pixels([picture.convert("RGB")], return_tensors="pt").to(device)
        tiles = int(seen.image_grid_thw[0].prod()) // self.pixels.merge_size**2
        ids = self.tokenizer(message(prompt, tiles), return_tensors="pt").input_ids.to(device)
        places = torch.arange(ids.shape[1], device=device).expand(3, 1, -1)  # also of the picture's tiles
        hidden = self.model(
            input_ids=ids, position_ids=places, pixel_values=seen.pixel_values, image_grid_thw=seen.image_grid_thw,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        place = (ids[0] == self.tokenizer.convert_tokens_to_ids(REWARD)).nonzero()[-1, 0]
        return self.head(hidden[0, place].float())


def message(prompt: str, tiles: int) -> str:
    """What the model reads of a prompt and a picture of so many tiles. Special tokens in a prompt are broken up."""
    asked = INSTRUCTION.replace("{text_prompt}", prompt.replace("<|", "< |"))
    return BEFORE + PICTURE * tiles + BETWEEN + asked + AFTER


def load(model: str, base: str, device: torch.device) -> HPSv3:
    """`model` holds the weights, `base` the configuration and the tokenizer of Qwen2-VL: folders or hub ids.

    Raises:
        LpoError: if a file is missing or broken, or the weights do not fit the configuration.
    """
    path = file_of(model, WEIGHTS)
    words = tokenizer_of(Qwen2Tokenizer, base)
    words.add_tokens([REWARD], special_tokens=True)
    config = from_pretrained(Qwen2VLConfig, base)
    try:
        weights, last = split_weights(weights_of(path))
        config.text_config.vocab_size = len(weights[f"{LANGUAGE}embed_tokens.weight"])
        layers = head(last)
    except KeyError as error:
        raise LpoError(f"unknown or missing weight {error}", str(path), REMEDY) from error
    if len(words) != config.text_config.vocab_size:
        what = f"the weights know {config.text_config.vocab_size} tokens, the tokenizer with {REWARD} has {len(words)}"
        raise LpoError(what, f"{path}, {base}", REMEDY)
    # Casting the whole model also rounds the frequencies of its position embedding to bfloat16: so it was trained.
    qwen = built(config, weights, str(path)).to(device, DTYPE).requires_grad_(False).eval()
    return HPSv3(qwen, fill(layers, last, str(path)).to(device), words, processor(config))


def processor(config: Qwen2VLConfig) -> Qwen2VLImageProcessorPil:
    vision = config.vision_config
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": PIXELS, "longest_edge": PIXELS}, patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size, temporal_patch_size=vision.temporal_patch_size,
    )  # fmt: skip


def split_weights(published: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Published names -> weights of (Qwen2VLModel, head). Raises KeyError on an unknown name.

    Old versions of transformers saved "visual." and "model.", newer ones "model.visual." and "model.language_model.".
    """
    model: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}
    for name, value in published.items():
        inner = name.removeprefix("model.")
        if name.startswith(HEAD):
            last[name.removeprefix(HEAD)] = value
        elif inner.startswith((LANGUAGE, VISION)):
            model[inner] = value
        elif inner != name:
            model[LANGUAGE + inner] = value
        elif not name.startswith(UNUSED):
            raise KeyError(name)
    return model, last


def head(weights: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The head for these weights; the third module is the dropout of its training. Raises KeyError."""
    first, second, third = (nn.Linear(*weights[f"{place}.weight"].shape[::-1]) for place in (0, 3, 5))
    return nn.Sequential(first, nn.ReLU(), nn.Identity(), second, nn.ReLU(), third)


def built(config: Qwen2VLConfig, weights: Mapping[str, torch.Tensor], where: str) -> Qwen2VLModel:
    """The model with these weights, without a moment at which it is in memory twice. Raises LpoError."""
    try:
        model, info = Qwen2VLModel.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=DTYPE, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise LpoError(f"the weights don't fit: {error}", where, REMEDY) from error
    wrong = sorted(map(str, info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]))
    if wrong:
        raise LpoError(f"the weights don't fit: {len(wrong)} are missing, unknown or differ: {wrong[0]}", where, REMEDY)
    return model
