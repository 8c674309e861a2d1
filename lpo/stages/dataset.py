"""dataset: a source -> data/pairs, data/prompts.parquet and data/left_out.parquet.

simulated               the embedded world's pairs, drawn with data/base
pickapic, pickapic_v2   Pick-a-Pic from the hub, or from a folder of its layout
hpdv2                   HPDv2, the same
folder                  what `lpo data import` made of your own table
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from lpo import resume
from lpo.config import Dataset, Params
from lpo.data import prompts
from lpo.data.contract import check_early
from lpo.data.download import Store, open_store
from lpo.data.limits import Limits, limits_of
from lpo.data.refused import refuse, table_of
from lpo.data.schema import read_pairs
from lpo.data.sources import Part, convert, finish, hpdv2, index, pickapic
from lpo.files import write_json, write_parquet

log = logging.getLogger(__name__)

PAIRS, DOWNLOADS = Path("data/pairs"), Path("data/sources")
REPOSITORIES = pickapic.REPOSITORIES | {"hpdv2": hpdv2.REPOSITORY}


def run(params: Params) -> None:
    """Write the pairs of every split, the prompts, and what was left out of the source and why.

    Raises:
        LpoError: if the source is not here or damaged, a split gets no pairs or no prompts, or too many pairs break
            the data contract.
    """
    config = params.dataset
    if config.source == "simulated":
        from lpo.stages.simulated import run as simulate

        simulate(params)
        return
    limits, (named, left) = limits_of(params), prompts.read_named(config.prompts)  # before anything large is loaded
    store = _store(config)
    identity = {"dataset": asdict(config), "source": store.identity()}
    folder = resume.folder("dataset", identity)
    counts = convert(_parts(store, config), folder, config.limit, config.source)
    own = pickapic.prompts(store) if config.source in pickapic.REPOSITORIES else {}
    captions = _look(folder, params, limits)
    finish(counts, folder, PAIRS, "data/left_out.parquet", "dataset", left)
    metrics: dict[str, object] = {
        split: {"pairs": pairs, "ties": counts["ties"].get(split, 0)} for split, pairs in counts["pairs"].items()
    }
    metrics["captions"] = captions
    sizes = {"train": config.train_prompts, "validation": config.validation_prompts, "test": config.test_prompts}
    table, doubled = prompts.choose(PAIRS, own, named, sizes, params.seed)
    write_parquet("data/prompts.parquet", table)
    metrics["left_out"] = counts["left"]
    chosen = {str(split): int(count) for split, count in table["split"].value_counts().items()}
    metrics["prompts"] = chosen | {"in_several_splits": doubled, "left_out": len(left)}
    write_json("metrics/dataset.json", metrics)
    shutil.rmtree(folder)


def _look(folder: Path, params: Params, limits: Limits) -> dict[str, int]:
    """Hold the pairs to what can be known before they are scored, and count the captions that the model cuts.

    Raises:
        LpoError: if too many break the data contract. Scoring them first would cost hours and end the same way.
    """
    pairs = read_pairs(folder)
    verdict = check_early(pairs, limits)
    if what := verdict.too_many(params.filter.max_quarantined):
        bad = verdict.reasons != ""
        refuse("dataset", table_of(pairs[bad], verdict.reasons[bad]), what, limits.remedy(verdict.counts))
    longer = int(verdict.cut.sum()) if limits.cut else verdict.counts.get(limits.too_long, 0)
    if longer:
        done = "are cut in training" if limits.cut else "will be quarantined by `lpo filter`"
        log.warning("%d of %d captions %s: the model is %s", longer, len(pairs), done, limits.tokens.model)
    return {"limit": limits.tokens.limit, "longer": longer}


def _store(config: Dataset) -> Store:
    if config.source == "folder":
        index.check(Path(str(config.path)), f"lpo data import TABLE --out {config.path}")
    if config.path is not None:
        return open_store(config.path, None, config.revision)
    return open_store(DOWNLOADS / config.source, REPOSITORIES[config.source], config.revision)


def _parts(store: Store, config: Dataset) -> list[Part]:
    if config.source == "hpdv2":
        return hpdv2.parts(store, config.held_out_share, config.keep_downloads)
    return pickapic.parts(store, config.keep_downloads, config.are_different == "required")
