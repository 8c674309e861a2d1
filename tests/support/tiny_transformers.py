"""Untrained models with a diffusion transformer, of a few thousand weights, in the hub's layout (`save_pretrained`).

All draw pictures of 32 pixels in latents of 4 x 8 x 8, if `model.resolution` is 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from support.tiny_models import sd3, t5_encoder, t5_tokenizer, text_config, vae
from transformers import (
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lpo.emoji.vocabulary import make_tokenizer

SIDE = 32  # pixels
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant: "
    "{% if not enable_thinking %}<think></think>{% endif %}"
)
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a letter."""
    letters = [*bytes_to_unicode().values(), "<|endoftext|>"]
    own = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.chat_template = CHAT
    return own


def qwen3_config(tokenizer: Any, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=layers, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip


def kl() -> Any:
    return vae(shift_factor=0.1, scaling_factor=0.7, use_quant_conv=False, use_post_quant_conv=False)


def flux(folder: Path, guided: bool) -> Path:
    """Two blocks of two streams, two of one; dev has embedded guidance and times shifted by size, schnell neither."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**(SHIFTED if guided else {})), vae=kl(),
        text_encoder=CLIPTextModel(text_config(16, 16)), tokenizer=make_tokenizer(), text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux2_klein(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    autoencoder = AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * 16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    Flux2KleinPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED), vae=autoencoder,
        text_encoder=Qwen3ForCausalLM(qwen3_config(tokenizer, 28)), tokenizer=tokenizer, is_distilled=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def qwen_image(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    read = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    seen = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    autoencoder = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 2.0, 1.0],
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    shifts = SHIFTED | {"max_shift": 0.9, "max_image_seq_len": 8192, "shift": 1.0, "shift_terminal": 0.02}
    QwenImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**shifts), vae=autoencoder,
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=read, vision_config=seen)),
        tokenizer=tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def z_image(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    ZImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=kl(),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, 2)), tokenizer=tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sana(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer, levels = qwen_tokenizer(), 3
    transformer = SanaTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, downsample_block_type="conv", upsample_block_type="interpolate",
        encoder_block_out_channels=(8,) * levels, decoder_block_out_channels=(8,) * levels, scaling_factor=0.4,
        encoder_layers_per_block=(1,) * levels, decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels, decoder_qkv_multiscales=((),) * levels,
    )  # fmt: skip
    gemma = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    SanaPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder,
        text_encoder=Gemma2Model(gemma), tokenizer=tokenizer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


# name -> (model.family, writer)
MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "sd35-medium": ("sd3", partial(sd3, t5=True, dual=(0, 1), qk_norm="rms_norm")),
    "sd35-large": ("sd3", partial(sd3, t5=True, qk_norm="rms_norm")),
    "flux-dev": ("flux", partial(flux, guided=True)),
    "flux-schnell": ("flux", partial(flux, guided=False)),
    "flux2-klein": ("flux2_klein", flux2_klein),
    "qwen-image": ("qwen_image", qwen_image),
    "sana": ("sana", sana),
    "z-image": ("z_image", z_image),
}
