"""encode: data/pairs, data/collected, data/filtered -> data/latents: moments of every picture, and every caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lpo.config import Model, Params
from lpo.data.latents import write_captions, write_moments, write_space
from lpo.data.schema import iter_images
from lpo.families import codec_of, latent_space_of, load_family
from lpo.families.latent_space import check_same
from lpo.files import atomic_folder
from lpo.images import decode_rgb, to_tensor
from lpo.paths import COLLECTED, KEPT, LATENTS, PAIRS
from lpo.sampling.parts import Workers, processes


def run(params: Params) -> None:
    """Encode what the filter kept, each picture once, in the order of the shards.

    Raises:
        LpoError: before a picture is encoded, if the reward is to grow from a model with other latents.
    """
    size = load_family(params.model, device=torch.device("meta")).pixels  # of a model that is looked at, and not loaded
    codec = codec_of(params.model)
    kept = pd.read_parquet(KEPT)
    wanted = set(kept["image_0_uid"]) | set(kept["image_1_uid"])
    space = codec.space()
    if params.reward.base is not None:
        base = replace(params.model, path=params.reward.base, vae=None, denoiser=None)
        check_same(latent_space_of(base), space, f"params.yaml: reward.base: {base.path}")

    pixel_art = params.dataset.source == "simulated"

    def batches() -> Iterator[tuple[list[str], torch.Tensor]]:
        images = iter_images((PAIRS, COLLECTED), wanted, params.encode.batch_size, "encode")
        with Workers(processes(codec.device, params.model.path)) as workers:
            for uids, moments in workers.map(encoder, (params.model, size, pixel_art), images):
                yield uids, torch.from_numpy(moments)

    captions = sorted(set(kept["caption"]))
    with atomic_folder(LATENTS) as folder:
        write_moments(folder, batches(), params.encode.shard_size)
        write_captions(folder, captions)
        write_space(folder, space)


def encoder(
    model: Model, size: int, pixel_art: bool
) -> Callable[[tuple[list[str], list[bytes]]], tuple[list[str], np.ndarray]]:
    """(uids, encoded images) -> (uids, moments (N, 2 C, h, w) float16), with the VAE of `model`."""
    codec = codec_of(model)

    def work(batch: tuple[list[str], list[bytes]]) -> tuple[list[str], np.ndarray]:
        moments = codec.encode(to_tensor(decode_rgb(batch[1], size, pixel_art)))
        return batch[0], moments.to(torch.float16).cpu().numpy()

    return work
