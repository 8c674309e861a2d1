"""dataset: a source -> data/pairs, data/prompts.parquet and data/left_out.parquet.

simulated               the embedded world's pairs, drawn with data/base
pickapic, pickapic_v2   Pick-a-Pic from the hub, or from a folder of its layout
hpdv2                   HPDv2, the same
folder                  what `lpo data import` made of your own table
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from lpo import resume
from lpo.config import Dataset, Params
from lpo.data import prompts, sources_hpdv2, sources_index, sources_pickapic
from lpo.data.download import Store, open_store
from lpo.data.sources import Part, convert, finish
from lpo.files import write_json, write_parquet

PAIRS, DOWNLOADS = Path("data/pairs"), Path("data/sources")
REPOSITORIES = sources_pickapic.REPOSITORIES | {"hpdv2": sources_hpdv2.REPOSITORY}


def run(params: Params) -> None:
    """Write the pairs of every split, the prompts, and what was left out of the source and why.

    Raises:
        LpoError: if the source is not here or damaged, or a split gets no pairs or no prompts.
    """
    config = params.dataset
    if config.source == "simulated":
        from lpo.stages.simulated import run as simulate

        simulate(params)
        return
    store = _store(config)
    identity = {"dataset": asdict(config), "source": store.identity()}
    folder = resume.folder("dataset", identity)
    counts = convert(_parts(store, config), folder, config.limit, config.source)
    own = sources_pickapic.prompts(store) if config.source in sources_pickapic.REPOSITORIES else {}
    finish(counts, folder, PAIRS, "data/left_out.parquet")
    sizes = {"train": config.train_prompts, "validation": config.validation_prompts, "test": config.test_prompts}
    table, doubled = prompts.choose(PAIRS, own, config.prompts, sizes, params.seed)
    write_parquet("data/prompts.parquet", table)
    metrics: dict[str, object] = {
        split: {"pairs": pairs, "ties": counts["ties"].get(split, 0)} for split, pairs in counts["pairs"].items()
    }
    metrics["left_out"] = counts["left"]
    metrics["prompts"] = table["split"].value_counts().to_dict() | {"in_several_splits": doubled}
    write_json("metrics/dataset.json", metrics)
    shutil.rmtree(folder)


def _store(config: Dataset) -> Store:
    if config.source == "folder":
        sources_index.check(Path(str(config.path)), f"lpo data import TABLE --out {config.path}")
    if config.path is not None:
        return open_store(config.path, None, config.revision)
    return open_store(DOWNLOADS / config.source, REPOSITORIES[config.source], config.revision)


def _parts(store: Store, config: Dataset) -> list[Part]:
    if config.source == "hpdv2":
        return sources_hpdv2.parts(store, config.held_out_share, config.keep_downloads)
    return sources_pickapic.parts(store, config.keep_downloads)
