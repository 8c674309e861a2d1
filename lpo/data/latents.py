"""Stored latents: what the VAE makes of every picture, encoded once and memory-mapped.

moments-NNNNN.npy  (rows, 2 C, h, w) float16: mean and log variance of the unscaled latents
index.parquet      image_uid, shard, row
captions.parquet   caption; the captions of all pairs, sorted
space.json         what tells this latent space from others (families.latent_space.LatentSpace)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo.errors import LpoError
from lpo.families.latent_space import LatentSpace, space_of
from lpo.files import write_json, write_parquet


def write_moments(folder: Path, batches: Iterable[tuple[list[str], torch.Tensor]], shard_size: int) -> None:
    """Write moments of (uids, (N, 2 C, h, w)) batches as shards of `shard_size` rows, and their index."""
    pending: list[np.ndarray] = []
    uids: list[str] = []
    places: list[tuple[str, int, int]] = []
    shard = 0

    def flush(rows: int) -> None:
        nonlocal pending, shard, uids
        joined = np.concatenate(pending)
        np.save(folder / f"moments-{shard:05d}.npy", joined[:rows])
        places.extend((uid, shard, row) for row, uid in enumerate(uids[:rows]))
        pending, uids, shard = [joined[rows:]], uids[rows:], shard + 1

    for names, moments in batches:
        pending.append(moments.to(torch.float16).cpu().numpy())
        uids += names
        while len(uids) >= shard_size:
            flush(shard_size)
    if uids:
        flush(len(uids))
    pd.DataFrame(places, columns=["image_uid", "shard", "row"]).to_parquet(folder / "index.parquet", index=False)


def write_captions(folder: Path, captions: list[str]) -> None:
    write_parquet(folder / "captions.parquet", pd.DataFrame({"caption": captions}))


def write_space(folder: Path, space: LatentSpace) -> None:
    write_json(folder / "space.json", asdict(space))


class Latents:
    """Read access by image uid and by caption; only what is asked for is read from the disk."""

    def __init__(self, folder: Path) -> None:
        try:
            index = pd.read_parquet(folder / "index.parquet")
            self.captions: list[str] = pd.read_parquet(folder / "captions.parquet")["caption"].tolist()
            self.space = space_of(json.loads((folder / "space.json").read_text()))
        except OSError as error:
            raise LpoError(f"no stored latents here: {error}", str(folder), "run `lpo encode`") from error
        self.shards = [
            np.load(folder / f"moments-{i:05d}.npy", mmap_mode="r", allow_pickle=False)
            for i in range(index["shard"].max() + 1)
        ]
        self._place = dict(zip(index["image_uid"], zip(index["shard"], index["row"], strict=True), strict=True))
        self._caption = {caption: row for row, caption in enumerate(self.captions)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        channels, height, width = self.shards[0].shape[1:]
        return channels // 2, height, width

    def places(self, uids: Iterable[str]) -> np.ndarray:
        """(N, 2) shard and row of image uids. Raises LpoError naming the first unknown one."""
        try:
            return np.array([self._place[uid] for uid in uids], dtype=np.int64).reshape(-1, 2)
        except KeyError as error:
            raise LpoError(f"image {error} has no stored latents", "data/latents", "run `lpo encode`") from error

    def caption_rows(self, captions: Iterable[str]) -> torch.Tensor:
        return torch.tensor([self._caption[caption] for caption in captions])

    def moments(self, places: np.ndarray) -> torch.Tensor:
        """(N, 2 C, h, w) float32 of (N, 2) places."""
        return torch.from_numpy(np.stack([self.shards[s][r] for s, r in places])).float()


def sample_latents(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A draw from the VAE's posterior, unscaled: mean + std noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
