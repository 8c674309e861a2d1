"""What a run fetches from the hub, and how large it is, before anything is fetched.

Sizes of models are those of their weights in float32, from configurations on the meta device; how a repository stores
them is its own choice. The size of a data set is what the hub lists of it, where its list was kept or the hub answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import CLIPConfig, CLIPModel

from lpo.config import Params
from lpo.doctor.memory import META, configured
from lpo.doctor.scorer_memory import config_of, count, judges, scorers
from lpo.families import load_family
from lpo.families.parts import split_source
from lpo.scorers import hpsv3


def downloads(params: Params) -> dict[str, int]:
    """Bytes by source of what params.yaml names and is neither a folder here nor in the hub's cache.

    Raises:
        LpoError: for a model whose configuration is nowhere.
    """
    sizes: dict[str, int] = {}
    for source, parts in _wanted(params):
        if not here(source):
            sizes[source] = sizes.get(source, 0) + 4 * count(parts)
    return sizes


def _wanted(params: Params) -> Iterator[tuple[str, list[nn.Module]]]:
    """(source, what of it is read) of everything."""
    model, config = params.model, params.reward
    family = load_family(configured(model), device=META)
    denoiser, *encoders = family.modules().values()
    assert family.codec.vae is not None
    yield model.path, encoders
    yield model.denoiser or model.path, [denoiser]
    yield model.vae or model.path, [family.codec.vae]
    if config.base is not None:
        base = load_family(configured(replace(model, path=config.base, vae=None, denoiser=None)), device=META)
        assert base.codec.vae is not None
        yield config.base, [*base.modules().values(), base.codec.vae]
    if config.text_projection not in ("random", "none"):
        with META:
            yield config.text_projection, [CLIPModel(config_of(CLIPConfig, config.text_projection))]
    mpcf = {"aesthetic", "clipscore", "vqascore"} & set(params.evaluate.judges)
    scored = params.score.table is None and params.filter.strategy != "none"
    if (params.score.scorers == "published" and scored) or mpcf:
        yield from scorers(params.score.models).items()
    yield from ((source, parts) for _, source, parts in judges(params))


def here(source: str) -> bool:
    """Whether a source is a folder or file, or in the hub's cache."""
    root, inside = split_source(source)
    names = [f"{inside}/{name}".lstrip("/") for name in ("model_index.json", "config.json")]
    names += ["ImageReward.pt", "HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt", hpsv3.WEIGHTS]
    return Path(root).exists() or any(isinstance(try_to_load_from_cache(root, name), str) for name in names)
