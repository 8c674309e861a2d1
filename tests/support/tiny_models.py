"""Untrained models of a few thousand weights in the layout of the real ones, written with `save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from lpo.emoji.vocabulary import make_tokenizer


def vae(seed: int = 0, channels: int = 4, **numbers: Any) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        sample_size=32, **({"scaling_factor": 0.9} | numbers),
    )  # fmt: skip


def text_config(width: int, projection: int) -> CLIPTextConfig:
    tokenizer = make_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, projection_dim=projection,
    )  # fmt: skip


def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, timestep_spacing="leading",
    )  # fmt: skip


def sd(folder: Path, seed: int = 0) -> Path:
    """Four levels of two layers, as SD1.5 has them."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 24, 24),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), norm_num_groups=8,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae(seed), text_encoder=CLIPTextModel(text_config(16, 16)), tokenizer=make_tokenizer(), unet=unet,
        scheduler=ddim(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sdxl(folder: Path, seed: int = 0) -> Path:
    """Two text encoders of 16 and 24, pooled 24, three levels of two layers, and time ids."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 24, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16 + 24,
        attention_head_dim=(2, 2, 4), norm_num_groups=8, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
        transformer_layers_per_block=(1, 1, 2),
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config(16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(24, 24)), tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(), unet=unet, scheduler=ddim(), add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def lcm_unet(sdxl_base: Path, folder: Path) -> Path:
    """The U-Net of `sdxl`, with the guidance scale as an input, as LCM-SDXL is published: a folder of its own."""
    torch.manual_seed(1)
    config = dict(UNet2DConditionModel.load_config(sdxl_base, subfolder="unet"))
    UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": 8}).save_pretrained(folder)
    return folder


PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(f"▁{w}", -1.0) for w in ("a", "cat", "two", "dogs")]


def t5_tokenizer() -> T5TokenizerFast:
    return T5TokenizerFast(vocab=PIECES, extra_ids=5)


def t5_encoder() -> T5EncoderModel:
    """Of width 24."""
    return T5EncoderModel(
        T5Config(vocab_size=len(PIECES) + 5, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def sd3(folder: Path, t5: bool, seed: int = 0, dual: tuple[int, ...] = (), qk_norm: str | None = None) -> Path:
    """Three layers of width 16, latents of 4 channels with a shift, two CLIPs of 8 and 12, perhaps T5 of 24.

    dual, qk_norm: blocks with a second attention and normalised queries and keys, as SD3.5 has them.
    """
    torch.manual_seed(seed)
    words = make_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=8 + 12, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=dual, qk_norm=qk_norm,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(text_config(8, 8)), tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config(12, 12)), tokenizer_2=make_tokenizer(),
        text_encoder_3=t5_encoder() if t5 else None, tokenizer_3=t5_tokenizer() if t5 else None,
    ).save_pretrained(folder)  # fmt: skip
    return folder
