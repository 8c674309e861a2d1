"""encode: data/pairs, data/collected, data/filtered -> data/latents: moments of every picture, and every caption.

A shard of the latents is a part: a file in .checkpoints until all are there. So a killed run encodes only the shards
that are missing, and machines can share them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo import resume
from lpo.config import Model, Params
from lpo.data.latents import write_captions, write_moments, write_space
from lpo.data.schema import UIDS, iter_images, read_pairs
from lpo.errors import LpoError
from lpo.families import codec_of, latent_space_of, load_family
from lpo.families.latent_space import check_same
from lpo.files import atomic_folder, file_hash, folder_hash, replacing
from lpo.images import decode_rgb, to_tensor
from lpo.paths import COLLECTED, KEPT, LATENTS, PAIRS
from lpo.resume import Share, announce, in_share
from lpo.sampling.parts import Workers, decoders, processes


def run(params: Params, share: Share | None = None) -> None:
    """Encode what the filter kept, each picture once, in the order of the shards of the pairs.

    Args:
        share: encode only the shards of this share, and write no output.

    Raises:
        LpoError: before a picture is encoded, if the reward is to grow from a model with other latents, or a picture
            is not among the pairs.
    """
    config, pixel_art = params.encode, params.dataset.source == "simulated"
    size = load_family(params.model, device=torch.device("meta")).pixels  # of a model that is looked at, and not loaded
    codec = codec_of(params.model)
    space = codec.space()
    if params.reward.base is not None:
        base = replace(params.model, path=params.reward.base, vae=None, denoiser=None)
        check_same(latent_space_of(base), space, f"params.yaml: reward.base: {base.path}")

    kept = pd.read_parquet(KEPT)
    uids = in_order(set(kept["image_0_uid"]) | set(kept["image_1_uid"]))
    shards = [uids[start : start + config.shard_size] for start in range(0, len(uids), config.shard_size)]
    vae = params.model.vae or params.model.path
    folder = resume.folder("encode", {
        "encode": asdict(config), "model": asdict(params.model), "vae": folder_hash(vae), "device": str(codec.device),
        "kept": file_hash(KEPT), "pairs": [folder_hash(pairs) for pairs in (PAIRS, COLLECTED)],
    })  # fmt: skip
    announce(folder, share)
    missing = [n for n in range(len(shards)) if in_share(share, n) and not _file(folder, n).exists()]
    wanted = {uid for n in missing for uid in shards[n]}
    images = iter_images((PAIRS, COLLECTED), wanted, 1, "encode" if missing else "")
    batches = split((data for _, (data,) in images), [len(shards[n]) for n in missing], config.batch_size)
    with Workers(processes(codec.device, params.model.path)) as workers:
        results = workers.map(encoder, (params.model, size, pixel_art), batches)
        for n in missing:
            count = -(-len(shards[n]) // config.batch_size)
            with replacing(_file(folder, n)) as partial, partial.open("wb") as file:
                np.save(file, np.concatenate(list(islice(results, count))))
    if share is not None:
        return

    with atomic_folder(LATENTS) as out:
        parts = (np.load(_file(folder, n), allow_pickle=False) for n in range(len(shards)))
        write_moments(out, zip(shards, map(torch.from_numpy, parts), strict=True), config.shard_size)
        write_captions(out, sorted(set(kept["caption"])))
        write_space(out, space)
    shutil.rmtree(folder)  # before DVC makes its copy: the disk holds two at most


def in_order(wanted: set[str]) -> list[str]:
    """The uids of these images, in the order in which they are found in the pairs.

    Raises:
        LpoError: if some are nowhere.
    """
    pairs = read_pairs((PAIRS, COLLECTED))
    found = dict.fromkeys(uid for row in zip(*(pairs[name] for name in UIDS), strict=True) for uid in row)
    if missing := sorted(wanted - found.keys()):
        what = f"{len(missing)} images are not among the pairs: {', '.join(missing[:5])}"
        raise LpoError(what, str(KEPT), "run `lpo filter` again")
    return [uid for uid in found if uid in wanted]


def split(images: Iterator[bytes], lengths: Sequence[int], size: int) -> Iterator[list[bytes]]:
    """Batches of at most `size` images, none of which holds images of two shards of these lengths."""
    for length in lengths:
        shard = islice(images, length)
        while batch := list(islice(shard, size)):
            yield batch


def encoder(model: Model, size: int, pixel_art: bool) -> Callable[[list[bytes]], np.ndarray]:
    """Encoded images -> moments (N, 2 C, h, w) float16, with the VAE of `model`."""
    codec = codec_of(model)

    def work(batch: list[bytes]) -> np.ndarray:
        moments = codec.encode(to_tensor(decode_rgb(batch, size, pixel_art, decoders(codec.device))))
        return moments.to(torch.float16).cpu().numpy()

    return work


def _file(folder: Path, number: int) -> Path:
    return folder / f"moments-{number:05d}.npy"
